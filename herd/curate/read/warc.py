"""WARC files: reading crawls as they are, damage included, and writing archives that any WARC tool reads.

Source: ISO 28500 (WARC 1.0 and 1.1).
"""

from __future__ import annotations

import gzip
import hashlib
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from herd.curate.read.storage import open_file

_PAGES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_STARTS = {b"\x1f\x8b": b"\x1f\x8b\x08", b"\x28\xb5": b"\x28\xb5\x2f\xfd"}  # how a gzip member, a zstd frame begins
_SEARCH_BYTES = 1 << 20


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

    A damaged record is counted in `counts["corrupt"]` and reading goes on at the next record that can be found;
    records that hold no page (requests, metadata, error answers) are counted by kind.
    """
    with open_file(path) as file:
        start = _STARTS.get(file.read(2), b"WARC/1.")
        position: int | None = 0
        while position is not None:
            last = position
            try:
                file.seek(position)
                for record in ArchiveIterator(file, parse_http=False, auto_decode="all"):
                    last = position + record.stream_pos
                    page = _page(record, counts, max_bytes, last)
                    if page is not None:
                        yield page
                if _ends_early(file, last, start):
                    counts["corrupt"] += 1
                return
            except (OSError, ValueError, EOFError):
                counts["corrupt"] += 1
                position = _next_start(file, last + 1, start)


def _page(record: WarcRecord, counts: Counter, max_bytes: int, offset: int) -> WarcPage | None:
    counts["records"] += 1
    if not record.record_type & _PAGES:
        counts[str(record.record_type)] += 1
        return None
    media_type = record.headers.get("Content-Type") or ""
    charset = ""
    if media_type.startswith("application/http"):
        record.parse_http(auto_decode="all")
        if not 200 <= (record.http_headers.status_code or 0) < 300:
            counts["not a successful answer"] += 1
            return None
        media_type, charset = record.http_content_type or "", record.http_charset or ""
    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
    content = record.reader.read(max_bytes + 1)
    num_bytes = len(content)
    if num_bytes > max_bytes:
        num_bytes, content = max(num_bytes, record.content_length), b""
    declared = record.headers.get("Content-Length")
    if record.headers.get("WARC-Truncated"):
        counts["truncated by the crawler"] += 1
    date = record.headers.get("WARC-Date") or ""
    if not record.is_http and declared and num_bytes < int(declared):
        raise ValueError("the record ends early")
    return WarcPage(url, date, media_type.partition(";")[0].strip().lower(), charset, content, num_bytes, offset)


def _ends_early(file: IO[bytes], position: int, start: bytes) -> bool:
    """Whether the records from `position` on break off: the reader takes that for the end of the file."""
    if start == b"WARC/1.":
        return _plain_ends_early(file, position)
    if start != b"\x1f\x8b\x08":
        return False
    file.seek(position)
    if file.read(len(start)) != start:  # all records lie in one member, and the reader counts in what it holds
        position = 0
    file.seek(position)
    member = None
    while block := file.read(_SEARCH_BYTES):
        while block:
            member = member or zlib.decompressobj(wbits=31)
            try:
                member.decompress(block, _SEARCH_BYTES)
            except zlib.error:
                return True
            block = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    return member is not None


def _plain_ends_early(file: IO[bytes], position: int) -> bool:
    file.seek(position)
    head, end, _ = file.read(_SEARCH_BYTES).partition(b"\r\n\r\n")
    declared = re.search(rb"^content-length:\s*(\d{1,18})\s*$", head, re.I | re.M)
    if not end or declared is None:
        return False
    return position + len(head) + len(end) + int(declared[1]) > file.seek(0, 2)


def _next_start(file: IO[bytes], position: int, start: bytes) -> int | None:
    """Where the next record may begin at or after `position`, or None at the end of the file."""
    file.seek(position)
    tail = b""
    while block := file.read(_SEARCH_BYTES):
        found = (tail + block).find(start)
        if found >= 0:
            return position - len(tail) + found
        position += len(block)
        tail = block[1 - len(start) :]
    return None


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
