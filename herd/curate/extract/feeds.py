"""RSS and Atom feeds as one page of articles: the title and the text of every entry, in the feed's order."""

from __future__ import annotations

import re
from html import escape, unescape

_PREFIX = re.compile(r"(</?)(?:atom|rss|a|ns\d)\d*:(?=\w)", re.I)  # of feeds whose own names have one
_ENTRY = re.compile(r"<(item|entry)\b[^>]*>(.*?)</\1\s*>", re.S | re.I)
_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title\s*>", re.S | re.I)
_BODY = tuple(
    re.compile(rf"<{name}\b([^>]*)>(.*?)</{name}\s*>", re.S | re.I)
    for name in ("content:encoded", "content", "description", "summary")
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.S)


def feed_page(source: str) -> str:
    """A feed as HTML: a heading and the body of every entry. Dates, links and categories are left out."""
    if _ENTRY.search(source) is None:
        source = _PREFIX.sub(r"\1", source)
    entries = [match[2] for match in _ENTRY.finditer(source)]
    head = source[: source.find(entries[0])] if entries else source
    title = _text(_TITLE.search(head))
    parts = [f"<html><head><title>{escape(title)}</title></head><body><main>"]
    for entry in entries:
        parts.append(f"<article><h2>{escape(_text(_TITLE.search(entry)))}</h2><div>{_body(entry)}</div></article>")
    return "".join([*parts, "</main></body></html>"])


def _text(match: re.Match | None) -> str:
    return " ".join(re.sub(r"<[^<>]*>", " ", _markup(match[1])).split()) if match else ""


def _body(entry: str) -> str:
    """The fullest form of an entry's text: HTML in CDATA or escaped, or as it is (Atom's xhtml)."""
    bodies = [match for pattern in _BODY if (match := pattern.search(entry))]
    return max((_markup(match[2]) for match in bodies), key=len, default="")


def _markup(inner: str) -> str:
    inner = inner.strip()
    if "<![CDATA[" in inner:
        return _CDATA.sub(lambda match: match[1], inner)
    return inner if "<" in inner else unescape(inner)
