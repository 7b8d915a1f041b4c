"""WARC files: reading crawls as they are, damage included, and writing archives that any WARC tool reads.

Source: ISO 28500 (WARC 1.0 and 1.1).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from herd.curate.read.records import records
from herd.curate.read.storage import open_file

_PAGES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_COMPRESSED = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd")
_DECODINGS: tuple[Literal["all", "transfer", "content", "none"], ...] = (
    "all",
    "transfer",
    "content",
    "none",
)  # of a body that is not what its headers say: less and less


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
            try:
                for record in ArchiveIterator(io.BytesIO(data), parse_http=False, auto_decode="all"):
                    page = _page(record, counts, max_bytes, offset, data)
                    if page is not None:
                        yield page
                    break  # what follows the first head is that record's content
            except (OSError, ValueError, EOFError):
                counts["corrupt"] += 1


def _page(record: WarcRecord, counts: Counter, max_bytes: int, offset: int, data: bytes) -> WarcPage | None:
    counts["records"] += 1
    if not record.record_type & _PAGES:
        counts[str(record.record_type)] += 1
        return None
    media_type, charset = record.headers.get("Content-Type") or "", ""
    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
    date = record.headers.get("WARC-Date") or ""
    if media_type.startswith("application/http"):
        status, media_type, charset, content = _answer(data, counts, max_bytes)
        if not 200 <= status < 300:
            counts["not a successful answer"] += 1
            return None
    else:
        content = record.reader.read(max_bytes + 1)
    num_bytes = len(content)
    if num_bytes > max_bytes:
        num_bytes, content = max(num_bytes, record.content_length), b""
    if record.headers.get("WARC-Truncated"):
        counts["truncated by the crawler"] += 1
    return WarcPage(url, date, media_type.partition(";")[0].strip().lower(), charset, content, num_bytes, offset)


def _answer(data: bytes, counts: Counter, max_bytes: int) -> tuple[int, str, str, bytes]:
    """Status, media type, charset and body of an HTTP answer; of a body encoded otherwise than it says, as it is.

    Raises:
        ValueError: the body is compressed as it says, and damaged.
    """
    for decoding in _DECODINGS:
        record = next(iter(ArchiveIterator(io.BytesIO(data), parse_http=False)))
        try:
            record.parse_http(auto_decode=decoding)
            body = record.reader.read(max_bytes + 1)
        except (OSError, ValueError, EOFError):
            continue
        about = record.http_headers.status_code or 0, record.http_content_type or "", record.http_charset or ""
        if decoding != "all" and (record.http_headers.get("Content-Encoding") or "").strip().lower() == "deflate":
            with contextlib.suppress(zlib.error):  # without the wrapping that the standard asks for: browsers read it
                return *about, zlib.decompressobj(wbits=-15).decompress(body, max_bytes + 1)
        if decoding != "all" and body.startswith(_COMPRESSED):
            break
        counts["body not encoded as it says"] += decoding != "all"
        return *about, body
    raise ValueError("the body is damaged")


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
