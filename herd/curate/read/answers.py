"""Heads and HTTP answers as crawls hold them: read as they are, whatever their headers say.

Source: RFC 9110 and 9112 (HTTP), as servers and crawlers bend them: line feeds alone, folded lines, compressed bodies
that nobody announced, announced ones that are none, chunks or none.
"""

from __future__ import annotations

import io
import re
import zlib
from typing import NamedTuple

from fastwarc.stream_io import BrotliReader, ZstdReader

HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"\s*(?:HTTP/[\d.]+|ICY|:status)[ \t]*:?[ \t]*(\d{3})\b[^\r\n]*", re.I)
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.I)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_LAYERS = 3
_PACKED_FILES = ("application/gzip", "application/x-gzip", "application/zstd", "application/x-tar")


class Answer(NamedTuple):
    """An HTTP answer; `lied` where its body is not encoded as its headers say, `cut` where it breaks off."""

    status: int  # 0 where there is none
    media_type: str
    charset: str
    body: bytes
    lied: bool
    cut: bool


def read_head(data: bytes) -> tuple[dict[str, str], int]:
    """Names, in small letters, and values of a head behind its first line, and where its content begins."""
    end = HEAD_END.search(data)
    headers: dict[str, str] = {}
    last = ""
    for line in data[: end.start() if end else len(data)].decode("utf-8", "replace").split("\n")[1:]:
        if line[:1] in (" ", "\t") and last:
            headers[last] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        if colon:
            last = name.strip().lower()
            headers.setdefault(last, value.strip())
    return headers, end.end() if end else len(data)


def is_answer(block: bytes) -> bool:
    """Whether bytes begin like an HTTP answer."""
    return _STATUS.match(block[:200]) is not None


def media_type_of(declared: str) -> tuple[str, str]:
    """Type and charset of a `Content-Type`; of several types the first."""
    charset = _CHARSET.search(declared)
    return re.split("[;,]", declared)[0].strip().lower(), charset[1].lower() if charset else ""


def read_answer(block: bytes, max_bytes: int) -> Answer:
    """The answer that a record holds; interim ones (`100 Continue`) before it are passed over.

    Raises:
        ValueError: the body is compressed as it says, and damaged.
    """
    status = 0
    while found := _STATUS.match(block):
        status = int(found[1])
        headers, start = read_head(block.lstrip())
        block = block.lstrip()[start:]
        if not 100 <= status < 200 or status == 101:
            break
    if not status:
        return Answer(0, "", "", b"", False, False)
    media_type, charset = media_type_of(headers.get("content-type", ""))
    body, lied, cut = _body(block, headers, media_type, max_bytes + 1)
    return Answer(status, media_type, charset, body, lied, cut)


def _body(body: bytes, headers: dict[str, str], media_type: str, limit: int) -> tuple[bytes, bool, bool]:
    """What a body holds when it is unpacked, whether its headers lie about it, and whether it is cut."""
    declared = headers.get("transfer-encoding", "").strip().lower()
    lied = cut = False
    chunks = _unchunked(body)
    if chunks is not None and (chunks[1] or "chunked" in declared):
        body, whole = chunks
        lied, cut = "chunked" not in declared, not whole
    elif declared not in ("", "identity"):
        lied = True
    names = [name.strip() for name in headers.get("content-encoding", "").lower().split(",")]
    names = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    layers = 0
    is_file = not names and media_type in _PACKED_FILES
    while layers < _MAX_LAYERS and not is_file and body.startswith((_GZIP, _ZSTD)):
        body, whole = _unpacked(body, limit)
        cut |= not whole
        layers += 1
    if not layers and body and names and (found := _without_mark(body, names, limit)) is not None:
        body, layers = found, 1
    return body[:limit], lied or bool(layers) != bool(names), cut


def _unpacked(body: bytes, limit: int) -> tuple[bytes, bool]:
    """One layer of gzip or zstd taken off, and whether it was whole; what follows a stream is left out.

    Raises:
        ValueError: it is damaged.
    """
    try:
        if body.startswith(_ZSTD):
            return ZstdReader(io.BytesIO(body)).read(limit), True
        pieces: list[bytes] = []
        while body.startswith(_GZIP) and sum(map(len, pieces)) < limit:
            member = zlib.decompressobj(wbits=31)
            pieces.append(member.decompress(body, limit))
            if not member.eof:
                return b"".join(pieces), bool(member.unconsumed_tail)
            body = member.unused_data
        return b"".join(pieces), True
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the body is damaged: {error}") from None


def _without_mark(body: bytes, names: list[str], limit: int) -> bytes | None:
    """A body unpacked that bears no mark of how it is packed; None where it is not packed as it says."""
    if "br" in names:
        try:
            return BrotliReader(io.BytesIO(body)).read(limit) or None
        except (OSError, ValueError, EOFError):
            return None
    for wbits in (15, -15):  # with the wrapping that the standard asks for, and without: browsers read both
        try:
            if wbits > 0 or "deflate" in names:
                return zlib.decompressobj(wbits=wbits).decompress(body, limit) or None
        except zlib.error:
            pass
    return None


def _unchunked(body: bytes) -> tuple[bytes, bool] | None:
    """The chunks of a body put together, and whether the last one is there; None where it is not made of chunks."""
    pieces: list[bytes] = []
    place = 0
    while chunk := _CHUNK.match(body, place):
        size = int(chunk[1], 16)
        if size == 0:
            return b"".join(pieces), True
        pieces.append(body[chunk.end() : chunk.end() + size])
        place = chunk.end() + size
        place += 2 if body[place : place + 2] == b"\r\n" else body[place : place + 1] == b"\n"
    return (b"".join(pieces), False) if pieces and place >= len(body) else None
