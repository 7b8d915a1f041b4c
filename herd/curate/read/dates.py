"""When a page was written: what it says itself (JSON-LD, meta elements, `time`), its address, else the crawl's record.

A date later than the crawl's own, or of before the web, is a mistake and counts for nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from herd.curate.filters.addresses import plain_date

_HEAD_BYTES = 300_000
_MARKS = (b"ublish", b"PUBLISH", b"odified", b"date", b"Date", b"DATE", b"ssued", b"<time")
_PUBLISHED_MARK = re.compile(  # an element that says that its date is when the page was published
    rb"""\b(?:itemprop\s*=\s*["']?datePublished|pubdate\b|class\s*=\s*["'][^"'>]*\bpublished\b)""", re.I
)
_DATED = re.compile(rb"<(?:time|span|abbr|div|p)\b[^>]{0,300}>", re.I)
_VALUE = re.compile(rb"""\b(?:datetime|content|title)\s*=\s*["']?((?:19|20)\d\d-[^"'>]{2,40})""", re.I)
_JSON_LD = re.compile(rb'"(datePublished|dateCreated|dateModified|uploadDate)"\s*:\s*"([^"]{4,40})"')
_META = re.compile(rb"<meta\b[^>]{0,600}>", re.I)
_NAME = re.compile(rb"""\b(?:name|property|itemprop|http-equiv)\s*=\s*["']?([\w:.-]{3,60})""", re.I)
_CONTENT = re.compile(rb"""\bcontent\s*=\s*(?:"([^"]{4,40})"|'([^']{4,40})'|([^\s"'>]{4,40}))""", re.I)
_TIME = re.compile(rb"""<time\b[^>]{0,300}?\bdatetime\s*=\s*["']?([0-9][^"'>]{3,40})[^>]{0,100}>""", re.I)
_PUBLISHED: tuple[str, ...] = (
    "article:published_time",
    "og:published_time",
    "og:article:published_time",
    "datepublished",
    "date",
    "dc.date",
    "dc.date.issued",
    "pubdate",
)
_PUBLISHED += (
    "dcterms.created",
    "dcterms.date",
    "dcterms.issued",
    "citation_publication_date",
    "citation_date",
    "citation_online_date",
    "publishdate",
)
_PUBLISHED += (
    "publish_date",
    "parsely-pub-date",
    "sailthru.date",
    "article.published",
    "dc.date.created",
    "datecreated",
    "issued",
)
_MODIFIED: tuple[str, ...] = (
    "article:modified_time",
    "og:updated_time",
    "datemodified",
    "last-modified",
    "dcterms.modified",
    "revised",
)
_IN_ADDRESS = re.compile(
    r"[/_-]((?:19|20)\d\d)[/_-](0[1-9]|1[0-2])(?:[/_-](0[1-9]|[12]\d|3[01]))?(?=[/_.?]|-(?!\d)|$)"
    r"|/((?:19|20)\d\d)/([1-9]|1[0-2])/([1-9]|[12]\d|3[01])(?=/|$)"
    r"|[/_-](20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=[/_.?]|-(?!\d)|$)"
)
_FIRST_YEAR = "1990"


class Dated(NamedTuple):
    """A page's date as `plain_date` writes it, and who says so: `page`, `address`, `crawl` or nobody."""

    date: str
    by: str


def date_of(url: str, recorded: str, content: bytes) -> Dated:
    """The date of a page; `recorded` is what the crawl or the row says, empty where it says nothing."""
    crawled = plain_date(recorded)
    told = _told(content)
    if told and _is_possible(told, crawled):
        return Dated(told, "page")
    path = url.split("/", 3)[3] if url.startswith(("http://", "https://")) and url.count("/") > 2 else ""
    if match := _IN_ADDRESS.search("/" + path.partition("?")[0]):
        found = "-".join(part.zfill(2) for part in match.groups() if part)
        if _is_possible(found, crawled):
            return Dated(found, "address")
    return Dated(crawled, "crawl") if crawled else Dated("", "")


def _told(content: bytes) -> str:
    """What a page says of itself: the day it was published, else when it was changed."""
    head = content[:_HEAD_BYTES]
    if not any(mark in head for mark in _MARKS):
        return ""
    found: dict[str, str] = {}
    for name, value in _JSON_LD.findall(head):
        found.setdefault("modified" if name == b"dateModified" else "published", _plain(value))
    for element in _META.findall(head):
        name, content_of = _NAME.search(element), _CONTENT.search(element)
        if name and content_of:
            key = name[1].decode("ascii", "replace").lower()
            which = "published" if key in _PUBLISHED else "modified" if key in _MODIFIED else ""
            if which and (value := _plain(next(part for part in content_of.groups() if part))):
                found.setdefault(which, value)
    if not any(found.values()) and (marked := _marked(head)):
        found["published"] = marked
    if not any(found.values()) and (times := _TIME.findall(head)) and len(set(times)) == 1:
        found["published"] = _plain(times[0])  # several are of comments and of other pages
    return found.get("published") or found.get("modified", "")


def _marked(head: bytes) -> str:
    """The date of the first element that is marked as when the page was published."""
    for element in _DATED.findall(head):
        if _PUBLISHED_MARK.search(element) and (value := _VALUE.search(element)):
            return _plain(value[1])
    return ""


def _plain(value: bytes) -> str:
    text = value.decode("ascii", "replace").strip()
    return plain_date(text) if not text.isdigit() or len(text) in (8, 10, 13, 14) else ""


def _is_possible(date: str, crawled: str) -> bool:
    return date >= _FIRST_YEAR and (not crawled or date[:10] <= crawled[: len(date[:10])] or date[:10] <= crawled[:10])
