"""WARC files: reading crawls as they are, damage included, and writing archives that any WARC tool reads.

Source: ISO 28500 (WARC 1.0 and 1.1).
"""

from __future__ import annotations

import gzip
import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from herd.curate.read.answers import is_answer, media_type_of, read_answer, read_head
from herd.curate.read.records import arc_records, records
from herd.curate.read.storage import open_file

_PAGES = ("response", "resource", "conversion")


class WarcPage(NamedTuple):
    """A page as a crawl holds it; `content` is empty and `num_bytes` tells its size where it is over the limit."""

    url: str
    date: str
    media_type: str
    charset: str
    content: bytes
    num_bytes: int
    offset: int  # of its record in the file, in bytes


def read_warc(path: Path, counts: Counter, max_bytes: int) -> Iterator[WarcPage]:
    """The pages of a WARC or WET file (plain, gzip or zstd).

    A damaged record is counted in `counts["corrupt"]` once, and every sound record after it is read; records that hold
    no page (requests, metadata, error answers) are counted by kind, and so are bodies that are not encoded as they say.
    """
    with open_file(path) as file:
        for offset, data in records(file, counts):
            headers, start = read_head(data)
            counts["records"] += 1
            kind = headers.get("warc-type", "").lower()
            if kind not in _PAGES:
                counts[kind or "no type of record"] += 1
                continue
            url, date = headers.get("warc-target-uri", "").strip("<> "), headers.get("warc-date", "")
            declared = headers.get("content-type", "")
            page = _page(url, date, declared, data[start:], counts, max_bytes, offset, kind == "response")
            if page is not None:
                if headers.get("warc-truncated"):
                    counts["truncated by the crawler"] += 1
                yield page


def read_arc(path: Path, counts: Counter, max_bytes: int) -> Iterator[WarcPage]:
    """The pages of an ARC file (plain or gzip), as crawls before WARC wrote it; damage is counted as in `read_warc`."""
    with open_file(path) as file:
        for offset, url, date, declared, block in arc_records(file, counts):
            counts["records"] += 1
            if url.startswith("filedesc:"):
                continue
            page = _page(url, date, declared, block, counts, max_bytes, offset, True)
            if page is not None:
                yield page


def _page(
    url: str, date: str, declared: str, block: bytes, counts: Counter, max_bytes: int, offset: int, is_response: bool
) -> WarcPage | None:
    """The page of a record: of an HTTP answer its body, unpacked; None where there is none, which is counted."""
    media_type, charset = media_type_of(declared)
    if media_type.startswith("application/http") or (is_response and is_answer(block)):
        try:
            answer = read_answer(block, max_bytes)
        except ValueError:
            counts["corrupt"] += 1
            return None
        if not 200 <= answer.status < 300:
            counts["not a successful answer"] += 1
            return None
        media_type, charset, content = answer.media_type, answer.charset, answer.body
        for name, is_so in (("body not encoded as it says", answer.lied), ("body cut off", answer.cut)):
            if is_so:
                counts[name] += 1
    else:
        content = block
    num_bytes = len(content)
    if num_bytes > max_bytes:
        num_bytes, content = max(num_bytes, len(block)), b""
    return WarcPage(url, date, media_type, charset, content, num_bytes, offset)


def warc_record(url: str, date: str, media_type: str, content: bytes) -> bytes:
    """One gzip member holding a `resource` record. The same page gives the same bytes."""
    digest = hashlib.sha1(content).hexdigest()
    header = (
        "WARC/1.0\r\nWARC-Type: resource\r\n"
        f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url + digest)}>\r\n"
        f"WARC-Date: {date}\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return gzip.compress(header.encode() + content + b"\r\n\r\n", compresslevel=5, mtime=0)
