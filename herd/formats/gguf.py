"""The GGUF container that llama.cpp reads: fields, a table of tensors, and the tensors' bytes.

    "GGUF", version (u32), number of tensors (u64), number of fields (u64)
    a field:   its key, the type of its value (u32), the value; a string is its length (u64) and its bytes
    a tensor:  its name, number of dimensions (u32), dimensions (u64 each, innermost first), type (u32), offset (u64)
    padding up to `general.alignment`, then the tensors' bytes, each at its offset from here

No length or offset in a file is trusted: each is checked against the file's size first.

Source: the specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from herd.errors import CheckpointError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes unless `general.alignment` says otherwise."""

_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4


class BlockType(NamedTuple):
    """How weights are stored: blocks of `num_weights` in `num_bytes`."""

    id: int
    num_weights: int
    num_bytes: int


TYPES = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "BF16": BlockType(30, 1, 2),
    "F64": BlockType(28, 1, 8),
    "Q4_0": BlockType(2, 32, 18),
    "Q4_1": BlockType(3, 32, 20),
    "Q5_0": BlockType(6, 32, 22),
    "Q5_1": BlockType(7, 32, 24),
    "Q8_0": BlockType(8, 32, 34),
    "MXFP4": BlockType(39, 32, 17),
    "IQ4_NL": BlockType(20, 32, 18),
    "IQ4_XS": BlockType(23, 256, 136),
    "Q2_K": BlockType(10, 256, 84),
    "Q3_K": BlockType(11, 256, 110),
    "Q4_K": BlockType(12, 256, 144),
    "Q5_K": BlockType(13, 256, 176),
    "Q6_K": BlockType(14, 256, 210),
}
"""The types that are read, by llama.cpp's names."""

_UNREAD = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
_NAMES = {block.id: name for name, block in TYPES.items()}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10


class GGUFTensor(NamedTuple):
    """One tensor's entry in the table."""

    type: str
    shape: tuple[int, ...]  # outermost first, as in PyTorch
    offset: int  # from the beginning of its file, in bytes
    num_bytes: int
    file: Path


class GGUFFile(NamedTuple):
    """The fields of a file and its table of tensors; the tensors' bytes are not read."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic number."""
    try:
        with open(path, "rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def num_bytes(type: str, shape: Iterable[int]) -> int:
    """Bytes that a tensor takes; its rows must be whole blocks."""
    block = TYPES[type]
    return math.prod(shape) // block.num_weights * block.num_bytes


# ---- read ------------------------------------------------------------------------------------------------------------


def first_part(path: Path) -> Path:
    """The first file of a model in parts (`NAME-00001-of-0000N.gguf`), or the path itself."""
    part = _PART.fullmatch(path.name)
    return path.with_name(f"{part[1]}-00001-of-{part[3]}.gguf") if part else path


def read_gguf(path: Path) -> GGUFFile:
    """The fields and the table of tensors of a file or of its parts, all checked against the files' sizes.

    Raises:
        CheckpointError: a file is missing, cannot be read, is truncated or damaged, or holds a type that is not
            supported.
    """
    file = _read_one(path)
    count = file.fields.get("split.count", 1)
    return file if count in (0, 1) else _with_parts(file, count)


def _read_one(path: Path) -> GGUFFile:
    try:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content).file()
    except (OSError, ValueError) as fault:  # an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be read as GGUF: {fault}.") from None


def _with_parts(first: GGUFFile, count: Any) -> GGUFFile:
    """The tensors of all parts under the first one's fields."""
    part = _PART.fullmatch(first.path.name)
    if part is None or not isinstance(count, int) or int(part[3]) != count:
        raise CheckpointError(
            f"{first.path}: one of {count} parts, expected NAME-00001-of-{count:05}.gguf as its name."
        )
    tensors = dict(first.tensors)
    for number in range(1, count):
        path = first.path.with_name(f"{part[1]}-{number + 1:05d}-of-{part[3]}.gguf")
        if not path.exists():
            raise CheckpointError(f"{path} is missing: the model has {count} parts, which must be in one folder.")
        more = _read_one(path)
        if (more.fields.get("split.no"), more.fields.get("split.count")) != (number, count):
            raise CheckpointError(f"{path} is not part {number + 1} of {count}: it belongs to another model.")
        if twice := sorted(tensors.keys() & more.tensors.keys()):
            raise CheckpointError(f"{path}: the tensor {twice[0]} is also in {tensors[twice[0]].file.name}.")
        tensors |= more.tensors
    if (wanted := first.fields.get("split.tensors.count", len(tensors))) != len(tensors):
        raise CheckpointError(f"{first.path}: the {count} parts hold {len(tensors)} tensors, expected {wanted}.")
    return first._replace(tensors=tensors)


class _Reader:
    """A cursor in the file, which never moves beyond the end."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.place = path, content, 0

    def file(self) -> GGUFFile:
        if self.take(4, "its first bytes") != MAGIC:
            raise CheckpointError(f"{self.path} is no GGUF file: it does not begin with {MAGIC.decode()!r}.")
        version = self.number("I", "its version")
        if version not in (2, VERSION):
            how = "for big-endian machines" if version >> 16 else f"of version {version}"
            raise CheckpointError(f"{self.path} is GGUF {how}; versions 2 and {VERSION}, little-endian, are read.")
        num_tensors = self.count(24, "tensors")
        num_fields = self.count(12, "fields")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self.string("the key of a field")
            if key in fields:
                raise CheckpointError(f"{self.path} is damaged: the field {key} occurs twice.")
            fields[key] = self.value(self.number("I", f"the type of {key}"), key)
        return GGUFFile(self.path, fields, self.table(num_tensors, fields))

    def table(self, num_tensors: int, fields: dict[str, Any]) -> dict[str, GGUFTensor]:
        rows = [self.row() for _ in range(num_tensors)]
        alignment = self.alignment(fields)
        start = _padded(self.place, alignment)
        tensors: dict[str, GGUFTensor] = {}
        for name, type, shape, offset in rows:
            tensor = GGUFTensor(type, shape, start + offset, num_bytes(type, shape), self.path)
            if offset % alignment:
                raise CheckpointError(
                    f"{self.path} is damaged: tensor {name} begins at {offset:,}, no multiple of {alignment}."
                )
            if name in tensors:
                raise CheckpointError(f"{self.path} is damaged: the tensor {name} occurs twice.")
            if tensor.offset + tensor.num_bytes > len(self.content):
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {name} ends at byte {tensor.offset + tensor.num_bytes:,}, "
                    f"but the file has {len(self.content):,}."
                )
            tensors[name] = tensor
        return tensors

    def alignment(self, fields: dict[str, Any]) -> int:
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise CheckpointError(f"{self.path} is damaged: general.alignment is {alignment!r}, not a power of two.")
        return alignment

    def row(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self.string("the name of a tensor")
        dimensions = self.number("I", f"the dimensions of {name}")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise CheckpointError(f"{self.path} is damaged: tensor {name} has {dimensions} dimensions.")
        shape = tuple(reversed([self.number("Q", f"the shape of {name}") for _ in range(dimensions)]))
        type_id = self.number("I", f"the type of {name}")
        offset = self.number("Q", f"the offset of {name}")
        if type_id not in _NAMES:
            kind = f"stored as {_UNREAD[type_id]}" if type_id in _UNREAD else f"of a type not known here ({type_id})"
            raise CheckpointError(
                f"{self.path}: tensor {name} is {kind}, which is not read. Those that are: {', '.join(TYPES)}. Take a "
                "file in one of them, such as the model's Q4_K_M or Q8_0."
            )
        block = TYPES[_NAMES[type_id]]
        if 0 in shape or math.prod(shape) > len(self.content) * block.num_weights or shape[-1] % block.num_weights:
            raise CheckpointError(
                f"{self.path} is damaged: tensor {name} of shape {list(shape)} cannot be {_NAMES[type_id]} in a file "
                f"of {len(self.content):,} bytes."
            )
        return name, _NAMES[type_id], shape, offset

    def value(self, type_id: int, key: str) -> Any:
        if type_id in _SCALARS:
            return self.number(_SCALARS[type_id], key)
        if type_id == _STRING:
            return self.string(key)
        if type_id == _ARRAY:
            return self.array(key)
        raise CheckpointError(f"{self.path} is damaged: the field {key} has the unknown type {type_id}.")

    def array(self, key: str) -> list[Any]:
        type_id = self.number("I", key)
        if type_id == _STRING:
            return [self.string(key) for _ in range(self.count(8, f"strings in {key}"))]
        if type_id not in _SCALARS:
            raise CheckpointError(f"{self.path}: the field {key} is a list of type {type_id}, which is not read.")
        letter = _SCALARS[type_id]
        length = self.count(struct.calcsize(letter), f"values in {key}")
        return list(struct.unpack(f"<{length}{letter}", self.take(length * struct.calcsize(letter), key)))

    def count(self, least_bytes: int, what: str) -> int:
        """A number of items of at least `least_bytes` each, checked against the file's size."""
        count = self.number("Q", f"the number of {what}")
        if count * least_bytes > len(self.content) - self.place:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: it claims {count:,} {what}, more than its "
                f"{len(self.content):,} bytes can hold."
            )
        return count

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        return self.take(length, what).decode("utf-8", "replace")

    def number(self, letter: str, what: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize(letter), what))[0]

    def take(self, length: int, what: str) -> bytes:
        end = self.place + length
        if end > len(self.content):
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {what} would end at byte {end:,}, but the file has "
                f"{len(self.content):,}."
            )
        taken = self.content[self.place : end]
        self.place = end
        return taken


def _padded(place: int, alignment: int = ALIGNMENT) -> int:
    return -(-place // alignment) * alignment


# ---- write -----------------------------------------------------------------------------------------------------------


def header(fields: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Everything before the tensors' bytes, padded; `tensors` maps a name to its type and shape.

    Each tensor's bytes must follow in the same order, each filled up by `padding`.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    for key, value in fields.items():
        type_id, content = _encoded(value)
        parts += [_string(key), struct.pack("<I", type_id), content]
    offset = 0
    for name, (type, shape) in tensors.items():
        dimensions = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        parts += [_string(name), struct.pack("<I", len(shape)), dimensions]
        parts += [struct.pack("<IQ", TYPES[type].id, offset)]
        offset += _padded(num_bytes(type, shape))
    content = b"".join(parts)
    return content + padding(len(content))


def padding(written: int) -> bytes:
    """The zero bytes between `written` bytes and the next tensor."""
    return bytes(_padded(written) - written)


def write_padding(stream: BinaryIO) -> None:
    """Pad a file to the beginning of the next tensor."""
    stream.write(padding(stream.tell()))


def _encoded(value: Any) -> tuple[int, bytes]:
    """A value's type and bytes: strings, booleans, integers (32 bits if they fit), floats (32 bits), lists."""
    if isinstance(value, list):
        return _ARRAY, _encoded_list(value)
    if isinstance(value, str):
        return _STRING, _string(value)
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if value < 0:
        return _INT32, struct.pack("<i", value)
    return (_UINT32, struct.pack("<I", value)) if value < 2**32 else (_UINT64, struct.pack("<Q", value))


def _encoded_list(values: list[Any]) -> bytes:
    if values and isinstance(values[0], str):
        type_id, content = _STRING, b"".join(map(_string, values))
    elif values and isinstance(values[0], float):
        type_id, content = _FLOAT32, struct.pack(f"<{len(values)}f", *values)
    else:
        type_id, content = _INT32, struct.pack(f"<{len(values)}i", *values)
    return struct.pack("<IQ", type_id, len(values)) + content


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
