"""What kind a page is: by what its server says, its name, and how its bytes begin; where they differ, the bytes decide.

Source: the WHATWG MIME Sniffing Standard for the signatures.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

CODE_SUFFIXES = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".swift"}
CODE_SUFFIXES |= {".js", ".ts", ".tsx", ".jsx", ".rb", ".php", ".pl", ".sh", ".sql", ".r", ".jl", ".lua", ".scala"}
CODE_SUFFIXES |= {".cs", ".hs", ".ml", ".lean", ".css", ".toml", ".yaml", ".yml"}
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
_FEED_ROOTS = {b"rss", b"feed", b"rdf:rdf"}
_XML = re.compile(rb"\s*<\?xml\b", re.I)
_SCRIPT = re.compile(
    rb"\s*(?:/\*|//|['\"]use strict|[!;(]*\(?function\b|(?:var|let|const)\s+\w+\s*=|@charset|@import|@media)"
)
_HEAD_BYTES = 4096
_MAX_JSON_BYTES = 5_000_000


def sniff(content: bytes) -> str:
    """How bytes begin: `html`, `feed`, `pdf`, `json`, `xml`, `script`, `binary`, `text` (no tag); else ""."""
    head = content[:_HEAD_BYTES]
    if head.count(0) > len(head) // 4:
        head = head.replace(b"\0", b"")  # UTF-16
    head = head.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    if head[:1024].lstrip().startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(_BINARY):
        return "binary"
    before = _BEFORE_ROOT.match(head)
    root = _ROOT.match(head, before.end() if before else 0)
    name = root[1].lower() if root else b""
    if name in _FEED_ROOTS:
        return "feed"
    if looks_like_html(head):
        return "html"
    if name and _XML.match(head):
        return "xml"
    if head.lstrip()[:1] in (b"{", b"[") and _is_json(content):
        return "json"
    if not _ANY_TAG.search(head):
        return "script" if _SCRIPT.match(head) else "text"
    return ""


def looks_like_html(content: bytes) -> bool:
    """Whether bytes of unknown type begin like a web page."""
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in head


def kind_of(url: str, media_type: str, content: bytes) -> str | None:
    """`html`, `text`, `code`, `markdown`, `latex`, `feed` or `pdf`; None for what is no document."""
    found = sniff(content)
    if found in ("pdf", "feed"):
        return found
    if found in ("binary", "json") or media_type in _NO_PAGES:
        return None
    named = kind_of_name(url)
    if media_type in _HTML_TYPES:
        return {"xml": None, "script": None, "text": named or "text"}.get(found, "html")
    if found == "html" and (media_type in _UNTOLD or media_type in _FEED_TYPES or media_type == "text/plain"):
        return "html"
    if media_type in _TEXT_TYPES:
        return _TEXT_TYPES[media_type]
    if media_type in _FEED_TYPES or found == "xml":
        return None
    if media_type.startswith("text/"):
        is_asset = PurePosixPath(url.partition("?")[0]).suffix.lower() in ASSET_SUFFIXES
        return None if is_asset and url.startswith(("http:", "https:")) else named or "text"
    if media_type in _UNTOLD and found in ("text", "script") and named not in (None, "html"):
        return named
    return None


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
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
