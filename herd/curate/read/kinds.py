"""What kind a page is: by what its server says, its name, and how its bytes begin; where they differ, the bytes decide.

Source: the WHATWG MIME Sniffing Standard for the signatures.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

CODE_SUFFIXES = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".swift"}
CODE_SUFFIXES |= {".js", ".ts", ".tsx", ".jsx", ".rb", ".php", ".pl", ".sh", ".sql", ".r", ".jl", ".lua", ".scala"}
CODE_SUFFIXES |= {".cs", ".hs", ".ml", ".lean", ".css", ".toml", ".yaml", ".yml", ".patch", ".diff"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".markdown", ".tex"}
HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
OTHER_SUFFIXES = {".pdf", ".rss", ".atom", ".xml"}
ASSET_SUFFIXES = {".js", ".css"}
"""Beside web pages these are the pages' own, and no documents."""

_HTML_TYPES = {"text/html", "application/xhtml+xml", "application/xhtml"}
_FEED_TYPES = {"application/rss+xml", "application/atom+xml", "application/rdf+xml", "application/xml", "text/xml"}
_TEXT_TYPES = {"application/x-tex": "latex", "application/x-latex": "latex", "text/x-tex": "latex"}
_TEXT_TYPES |= {"text/markdown": "markdown", "text/x-markdown": "markdown", "application/markdown": "markdown"}
_NO_PAGES = {"text/javascript", "text/ecmascript", "text/css", "text/x-javascript", "text/vtt", "text/calendar"}
_NO_PAGES |= {"text/vcard", "text/event-stream", "text/cache-manifest"}
_UNTOLD = {"", "application/octet-stream", "application/http", "binary/octet-stream", "unknown/unknown"}
_MEDIA = ("image/", "audio/", "video/", "font/", "model/")
_BINARY: tuple[bytes, ...] = (
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"RIFF",
    b"OggS",
    b"ID3",
    b"\x7fELF",
)
_BINARY += (
    b"wOFF",
    b"wOF2",
    b"BM\x00",
    b"\x00\x00\x01\x00",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\xd0\xcf\x11\xe0",
    b"%!PS",
    b"MZ\x90",
)
_BEFORE_ROOT = re.compile(rb"(?:\s|<\?.{0,400}?\?>|<!--.{0,2000}?-->|<!doctype[^>]{0,400}>)*+", re.S | re.I)
_ROOT = re.compile(rb"<([a-z][\w:.-]*)", re.I)
_ANY_TAG = re.compile(rb"<[a-z!/?]", re.I)
_FEED_ROOTS = {b"rss", b"feed", b"rdf"}
_XML_ROOTS = {b"svg", b"urlset", b"sitemapindex", b"opml", b"plist", b"wml", b"kml", b"gpx"}
_XML = re.compile(rb"\s*<\?xml\b", re.I)
_SCRIPT = re.compile(rb"\s*(?:/\*|['\"]use strict|[!;(]*\(?function\b|@charset|@import|@media)")
_MAYBE_SCRIPT = re.compile(
    rb"\s*(?://|(?:var|let|const|function|class|async)\s|(?:im|ex)port\b|[($]\(|\(\w*\)?\s*=>|if\s*\(|try\s*\{|"
    rb"(?:window|document|self|module|jQuery|define|require|[\w$.]{1,60})\s*(?:[.=\[]\s*\S|\(\s*[\[{'\"f(]))"
)
_SCRIPT_SIGNS, _SCRIPT_SHARE = b"(){};=", 0.04  # what makes a text that begins like a script one
_RULE = re.compile(rb"[^{}<>]{1,300}+\{(?:\s*+[-\w*]++\s*+:[^{}:;]{1,300}+;?+)++\s*+\}")
_RULES_SHARE = 0.6  # of the bytes, that makes a style sheet
_RECORDS = re.compile(
    rb"\s*(?:BEGIN:V(?:CARD|CALENDAR)\b|WEBVTT\b|#EXTM3U|\{\\rtf|\)\]\}'|%!PS|"
    rb"-----BEGIN (?!PGP SIGNED)[A-Z0-9 ]{2,40}-----|"
    rb"user-agent:[^\n]{1,200}\n(?:\s|#[^\n]*\n)*(?:(?:dis)?allow|crawl-delay|sitemap|user-agent):|MIME-Version:|"
    rb"[\w.-]{3,60}, *[\w-]{3,40}, *(?:DIRECT|RESELLER)\b)",
    re.I,
)  # address books, calendars, subtitles, play lists, keys, rules for robots: written for programs
_LATEX = re.compile(rb"\s*(?:%[^\n]*\n\s*)*\\document(?:class|style)\b")
_PATCH = re.compile(rb"(?:diff --git |Index: \S+\n=====|--- \S+[^\n]*\n\+\+\+ \S)")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_STRAY_CONTROLS = 8  # what a text may hold of NULs and the like
_HEAD_BYTES = 4096
_MAX_JSON_BYTES = 5_000_000


def sniff(content: bytes) -> str:
    """How bytes begin: html, feed, pdf, json, xml, script, records (for programs), binary, text (no tag); else ""."""
    head = content[:_HEAD_BYTES]
    if head.count(0) > len(head) // 4:
        head = head.replace(b"\0", b"")  # UTF-16
    head = head.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    if head[:1024].lstrip().startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(_BINARY) and (len(head) < 20 or _NO_TEXT.search(head) or not head.isascii()):
        return "binary"
    before = _BEFORE_ROOT.match(head)
    root = _ROOT.match(head, before.end() if before else 0)
    name = root[1].lower().rpartition(b":")[2] if root else b""
    if name in _FEED_ROOTS:
        return "feed"
    if looks_like_html(head):
        return "html"
    if name in _XML_ROOTS or (name and _XML.match(head)):
        return "xml"
    if head.lstrip()[:1] in (b"{", b"[") and _is_json(content):
        return "json"
    if _RECORDS.match(head):
        return "records"
    if _is_script(head):
        return "script"
    if _ANY_TAG.search(head):
        return ""
    return "binary" if len(_NO_TEXT.findall(head)) > max(_STRAY_CONTROLS, len(head) // 20) else "text"


def _is_script(head: bytes) -> bool:
    """Whether bytes begin like a script or a style sheet, and go on so; a page may show code, but begins with a tag."""
    if _ROOT.match(head.lstrip()):
        return False
    if _SCRIPT.match(head):
        return not _ANY_TAG.search(head[:200])
    signs = sum(map(head.count, (bytes([sign]) for sign in _SCRIPT_SIGNS)))
    if signs > _SCRIPT_SHARE * len(head) and _MAYBE_SCRIPT.match(head):
        return True
    whole = head[: head.rfind(b"}") + 1]
    return bool(whole) and sum(map(len, _RULE.findall(whole))) > _RULES_SHARE * len(head)


def looks_like_html(content: bytes) -> bool:
    """Whether bytes of unknown type begin like a web page."""
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in head


def kind_of(url: str, media_type: str, content: bytes) -> str | None:
    """`html`, `text`, `code`, `markdown`, `latex`, `feed` or `pdf`; None for what is no document."""
    found = sniff(content)
    if found in ("pdf", "feed"):
        return found
    if found in ("binary", "json", "records") or media_type in _NO_PAGES:
        return None
    named = kind_of_name(url)
    if media_type in _HTML_TYPES:
        written = _written(content) or ("text" if named in (None, "html") else named)
        return {"xml": None, "script": None, "text": written}.get(found, "html")
    if found == "html" and not media_type.startswith(_MEDIA):
        return "html"
    if media_type in _TEXT_TYPES:
        return _TEXT_TYPES[media_type]
    is_asset = PurePosixPath(url.partition("?")[0]).suffix.lower() in ASSET_SUFFIXES
    if media_type in _FEED_TYPES or found == "xml" or (is_asset and url.startswith(("http:", "https:"))):
        return None
    if media_type.startswith("text/"):
        return _written(content) or named or "text"
    if media_type in _UNTOLD and found in ("text", "script"):
        if named in (None, "html"):
            return None if found == "script" or _NO_TEXT.search(content[:_HEAD_BYTES]) else "text"
        return named
    return None


def _written(content: bytes) -> str | None:
    """What a text is written in, where its first bytes say so."""
    head = content[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    return "latex" if _LATEX.match(head) else "code" if _PATCH.match(head) else None


def kind_of_name(name: str) -> str | None:
    """What the ending of a path or address says; None where it says nothing of these."""
    suffix = PurePosixPath(name.partition("?")[0].partition("#")[0]).suffix.lower() if name else ""
    if suffix in CODE_SUFFIXES:
        return "code"
    if suffix in HTML_SUFFIXES:
        return "html"
    return {".md": "markdown", ".markdown": "markdown", ".tex": "latex", ".txt": "text", ".rst": "text"}.get(suffix)


def _is_json(content: bytes) -> bool:
    if len(content) > _MAX_JSON_BYTES:
        return True  # so long a text does not begin with a bracket
    first, _, rest = content.removeprefix(b"\xef\xbb\xbf").strip().partition(b"\n")
    for text in (content, first if rest.lstrip()[:1] == first[:1] else b""):  # one document, or one a line
        try:
            json.loads(text)
            return True
        except (ValueError, RecursionError):
            pass
    return False
