"""The records of a WARC or ARC file as bytes, found again after any damage: plain, gzip and zstd.

A file is cut into members (of gzip) or frames (of zstd), usually one a record; each is unpacked by itself, so that a
damaged one takes no other along. In what they hold, and in plain files, a record is taken for sound where another
one, or nothing, follows the end that its head declares.

Source: ISO 28500 (WARC), RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

import io
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO

from fastwarc.stream_io import ZstdReader

from herd.curate.read.answers import HEAD_END

_GZIP, _ZSTD, _SKIPPABLE = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
_DICTIONARY = b"\x5d" + _SKIPPABLE
_BLOCK, _SEARCH_BYTES = 1 << 16, 1 << 20
_MEMORY_BYTES = 1 << 26  # a member that unpacks to more goes through a temporary file
_MAX_HEAD = 1 << 16
_START = re.compile(rb"(?:\A|(?<=\n))WARC/[01]\.\d")
_BEHIND = re.compile(rb"[\r\n]*(?:WARC/|W?A?R?C?\Z)")
_NEXT = b"WARC/"
_HEAD = re.compile(rb"WARC/[01]\.\d\r?\n[\w-]{1,40}[ \t]*:")  # wherever it stands: what lies before may be cut
_LENGTH = re.compile(rb"^content-length[ \t]*:[ \t]*(\d{1,15})[ \t]*\r?$", re.I | re.M)
_BLANK = b"\r\n\xef\xbb\xbf"  # line breaks, and what an editor puts before a file
_ARC_HEAD = re.compile(rb"(?:\A|(?<=\n))([a-z]{3,10}:[^\r\n]*?) ([\d.:a-f]+) (\d{14}) (\S+)(?: \S+)*? (\d{1,12})\r?\n")


def records(file: IO[bytes], counts: Counter) -> Iterator[tuple[int, bytes]]:
    """Every sound record with where it (or the member that holds it) begins; damaged ones go to `counts["corrupt"]`."""
    file.seek(0)
    start = file.read(_BLOCK)
    if start.startswith(_GZIP[:2]) or (not _is_plain(start) and _find(file, 0, _Gzip(file)) is not None):
        yield from _members(file, counts, _Gzip(file))
    elif start[:4] == _ZSTD or start[1:4] == _SKIPPABLE:
        yield from _members(file, counts, _Zstd(file))
    else:
        yield from _plain(file, counts)


def _is_plain(start: bytes) -> bool:
    return _START.search(start) is not None or start.startswith(_ZSTD) or start[1:4] == _SKIPPABLE or not start


def _members(file: IO[bytes], counts: Counter, packed: _Gzip | _Zstd) -> Iterator[tuple[int, bytes]]:
    size = file.seek(0, 2)
    position: int | None = 0
    while position is not None and position < size:
        with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as unpacked:
            end = packed.unpack(position, unpacked)
            while end is not None and end < size and packed.goes_on(end) and _is_cut(unpacked):
                end = packed.unpack(end, unpacked)  # a record over several members
            damaged = counts["corrupt"]
            if end is not None and (record := _whole(unpacked)):
                counts["length of a record not as declared"] += 1
                yield position, record
            else:
                for _, record in _plain(unpacked, counts):
                    yield position, record
        if end is None and counts["corrupt"] == damaged:
            counts["corrupt"] += 1
        position = _find(file, position + 1, packed) if end is None else end


def _is_cut(unpacked: IO[bytes]) -> bool:
    """Whether the last record that begins here ends beyond."""
    size = unpacked.seek(0, 2)
    position = 0
    while position < size:
        unpacked.seek(position)
        lead = unpacked.read(_MAX_HEAD)
        text = lead.lstrip(_BLANK)
        if not _START.match(text):
            return False
        head = HEAD_END.search(text)
        declared = _LENGTH.search(text, 0, head.start() + 2) if head else None
        if head is None or declared is None:
            return head is None
        position += len(lead) - len(text) + head.end() + int(declared[1])
    return position > size


def _whole(unpacked: IO[bytes]) -> bytes | None:
    """The one record of a sound member where its head declares another length than it has: the member tells."""
    size = unpacked.seek(0, 2)
    if size > _MEMORY_BYTES:
        return None
    unpacked.seek(0)
    data = unpacked.read().lstrip(_BLANK)
    head = HEAD_END.search(data, 0, _MAX_HEAD)
    if head is None or not _START.match(data):
        return None
    declared = _LENGTH.search(data, 0, head.start() + 2)
    end = head.end() + int(declared[1]) if declared else -1
    if 0 <= end <= len(data) and not data[end:].strip(b"\r\n"):
        return None
    return None if _START.search(data, 1) else data.rstrip(b"\r\n")


def _find(file: IO[bytes], position: int, packed: _Gzip | _Zstd) -> int | None:
    """Where the next member begins at or after `position`, or None at the end of the file."""
    while True:
        file.seek(position)
        block = file.read(_SEARCH_BYTES)
        if len(block) < len(packed.magic):
            return None
        place = block.find(packed.magic)
        while place >= 0:
            if packed.is_start(position + place):
                return position + place
            place = block.find(packed.magic, place + 1)
        position += len(block) - len(packed.magic) + 1


class _Gzip:
    """Members of gzip."""

    magic = _GZIP

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.heads: set[bytes] = set()  # of members that were sound, without the time

    def unpack(self, position: int, out: IO[bytes]) -> int | None:
        """Write what a member holds; where it ends, or None where it is damaged or cut."""
        self.file.seek(position)
        member = zlib.decompressobj(wbits=31)
        head = b""
        while block := self.file.read(_BLOCK):
            head = head or block[:10]
            try:
                out.write(member.decompress(block))
            except zlib.error:
                return None
            if member.eof:
                self.heads.add(head[:4] + head[8:])
                return self.file.tell() - len(member.unused_data)
        return None

    def goes_on(self, position: int) -> bool:
        """Whether the member there begins with no record."""
        self.file.seek(position)
        try:
            begin = zlib.decompressobj(wbits=31).decompress(self.file.read(4096), 64).lstrip(b"\r\n")
        except zlib.error:
            return False
        return not begin.startswith(b"WARC/") and bool(begin)

    def is_start(self, position: int) -> bool:
        """Whether a member begins there: with a head as others of the file have it, or with a record's first bytes."""
        self.file.seek(position)
        data = self.file.read(4096)
        try:
            return data[:4] + data[8:10] in self.heads or zlib.decompressobj(wbits=31).decompress(data, 5) == b"WARC/"
        except zlib.error:
            return False


class _Zstd:
    """Frames of zstd; the dictionary that a file may begin with counts for all."""

    magic = _ZSTD

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.dictionary = b""

    def unpack(self, position: int, out: IO[bytes]) -> int | None:
        """Write what a frame holds; where it ends, or None where it is damaged or cut."""
        end = self._end(position)
        if end is None:
            return None
        self.file.seek(position)
        frame = self.file.read(end - position)
        if self._swallows(position, frame, end):
            return None
        if frame[1:4] == _SKIPPABLE:
            self.dictionary = self.dictionary or (frame if frame.startswith(_DICTIONARY) else b"")
            return end
        try:
            reader = ZstdReader(io.BytesIO(self.dictionary + frame))
            while block := reader.read(_BLOCK):
                out.write(block)
        except (OSError, ValueError, EOFError):
            return None
        return end

    def _is_followed(self, position: int) -> bool:
        """Whether another frame, or nothing, begins there."""
        self.file.seek(position)
        head = self.file.read(4)
        return not head or head == _ZSTD or head[1:] == _SKIPPABLE

    def _swallows(self, position: int, frame: bytes, end: int) -> bool:
        """Whether whole frames lie in this one, which was cut: bytes stored as they are have no checksum."""
        inner = frame.find(_ZSTD, 1)
        place = position + inner if inner > 0 else None
        while place is not None and place < end:
            place = self._end(place)
        return place is not None and (place == end or (not self._is_followed(end) and self._is_followed(place)))

    def goes_on(self, position: int) -> bool:
        """Whether the frame there begins with no record: none was met that does."""
        return False

    def is_start(self, position: int) -> bool:
        """Whether a frame begins there; its magic number is rare enough."""
        return True

    def _end(self, position: int) -> int | None:
        self.file.seek(position)
        head = self.file.read(8)
        if head[1:4] == _SKIPPABLE and head[:1] and 0x50 <= head[0] <= 0x5F:
            end = position + 8 + int.from_bytes(head[4:], "little")
            return end if end <= self.file.seek(0, 2) else None
        if len(head) < 8 or head[:4] != _ZSTD:
            return None
        flags = head[4]
        is_single = flags >> 5 & 1
        place = position + 5 + (1 - is_single) + (0, 1, 2, 4)[flags & 3] + ((is_single, 2, 4, 8)[flags >> 6])
        is_last = 0
        while not is_last:
            self.file.seek(place)
            block = int.from_bytes(data := self.file.read(3), "little")
            is_last, kind = block & 1, block >> 1 & 3
            if len(data) < 3 or kind == 3:
                return None
            place += 3 + (1 if kind == 1 else block >> 3)
        place += 4 * (flags >> 2 & 1)
        return place if place <= self.file.seek(0, 2) else None


def _plain(file: IO[bytes], counts: Counter) -> Iterator[tuple[int, bytes]]:
    """Records one after the other; after a damaged one, from the next head on."""
    size = file.seek(0, 2)
    position: int | None = 0
    while position is not None and position < size:
        file.seek(position)
        lead = file.read(_MAX_HEAD if size - position > _MAX_HEAD else size - position)
        text = lead.lstrip(_BLANK)
        position += len(lead) - len(text)
        if not text:
            return
        end = _record_end(file, position, text, size)
        if end is None:
            counts["corrupt"] += 1
            following = _next_head(file, position + 1)
            if record := _up_to(file, position, text, following, size):
                counts["length of a record not as declared"] += 1
                yield position, record
            position = following
            continue
        file.seek(end)
        behind = file.read(80)
        found = None
        if not _BEHIND.match(behind) and (found := _START.search(behind, 1)):
            counts["corrupt"] += 1  # the declared end lies a little before the real one
            end += found.start()
        file.seek(position)
        data = file.read(end - position)
        yield position, data if not found else data.rstrip(b"\r\n")
        position = end


def _record_end(file: IO[bytes], position: int, lead: bytes, size: int, whole: bool = True) -> int | None:
    """Where a record's content ends, or None where it is damaged: no head there, cut, or no record behind it."""
    head = HEAD_END.search(lead)
    if not _START.match(lead) or head is None:
        return None
    declared = _LENGTH.search(lead, 0, head.start() + 2)
    if declared is None:
        return None
    end = position + head.end() + int(declared[1])
    if end > size:
        return None
    file.seek(end)
    behind = file.read(64)
    is_followed = not behind.strip(b"\r\n") or _BEHIND.match(behind) is not None
    if not whole:
        return end if is_followed else None
    inner = _next_head(file, position + 1, end)
    is_ended = behind.startswith(b"\r\n\r\n") and (inner is None or inner >= end)  # whatever follows
    if is_ended or (is_followed and (inner is None or inner >= end or _end_of_inner(file, inner, size) is None)):
        return end  # a page may quote a head; one that swallows a whole sound record has a wrong length
    return end if inner is not None and end < inner <= end + 64 else None  # a length that is a little too short


def _up_to(file: IO[bytes], position: int, lead: bytes, following: int | None, size: int) -> bytes | None:
    """A record whose declared length is wrong, up to the next head; None where it is no record, or was cut.

    One that is whole ends as all do, with two line breaks.
    """
    head = HEAD_END.search(lead)
    if head is None or not _START.match(lead) or (following or size) - position > _MEMORY_BYTES:
        return None
    declared = _LENGTH.search(lead, 0, head.start() + 2)
    if following is None and (declared is None or position + head.end() + int(declared[1]) > size):
        return None  # the file breaks off
    file.seek(position)
    data = file.read((following or size) - position)
    return next((data[: -len(mark)] for mark in (b"\r\n\r\n", b"\n\n") if data.endswith(mark)), None)


def _end_of_inner(file: IO[bytes], position: int, size: int) -> int | None:
    file.seek(position)
    return _record_end(file, position, file.read(_MAX_HEAD), size, whole=False)


def _next_head(file: IO[bytes], position: int, until: int | None = None) -> int | None:
    """Where the next head begins at or after `position`; beyond `until` only the next few bytes are looked at."""
    position -= 1  # the line break before it
    while True:
        file.seek(position)
        wanted = _SEARCH_BYTES if until is None else min(_SEARCH_BYTES, until + 80 - position)
        block = file.read(wanted)
        place = block.find(_NEXT, 1)
        while place >= 0 and not (_HEAD.match(block, place) or _START.match(block, place)):
            place = block.find(_NEXT, place + 1)
        if place >= 0:
            return position + place
        if len(block) < _SEARCH_BYTES:
            return None
        position += len(block) - 64


# ---- ARC -------------------------------------------------------------------------------------------------------------


def arc_records(file: IO[bytes], counts: Counter) -> Iterator[tuple[int, str, str, str, bytes]]:
    """Place, address, date, type and content of every sound record of an ARC file, plain or a member of gzip each."""
    size = file.seek(0, 2)
    file.seek(0)
    packed = _Gzip(file) if file.read(2) == _GZIP[:2] else None
    position: int | None = 0
    while position is not None and position < size:
        if packed is None:
            yield from ((offset, *record) for offset, record in _arc_plain(file, counts))
            return
        with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as unpacked:
            end = packed.unpack(position, unpacked)
            if end is None:
                counts["corrupt"] += 1
                position = _find(file, position + 1, packed)
                continue
            for _, record in _arc_plain(unpacked, counts):
                yield position, *record
        position = end


def _arc_plain(file: IO[bytes], counts: Counter) -> Iterator[tuple[int, tuple[str, str, str, bytes]]]:
    """ARC records one after the other; after a damaged one, from the next head on."""
    size = file.seek(0, 2)
    position = 0
    while position < size:
        file.seek(position)
        lead = file.read(_BLOCK)
        text = lead.lstrip(b"\r\n")
        position += len(lead) - len(text)
        if not text:
            position += not lead
            continue
        head = _ARC_HEAD.match(text)
        if head is None or position + head.end() + int(head[5]) > size:
            counts["corrupt"] += 1
            found = _ARC_HEAD.search(text, 1)
            while found is None and len(lead) == _BLOCK:
                position += _BLOCK - 4096
                file.seek(position)
                lead = text = file.read(_BLOCK)
                found = _ARC_HEAD.search(text)
            if found is None:
                return
            position += found.start()
            continue
        url, _, date, declared, length = (part.decode("utf-8", "replace") for part in head.groups())
        file.seek(position + head.end())
        yield position, (url, date, declared, file.read(int(length)))
        position += head.end() + int(length)
