"""Safetensors files: read with all checks, written in chunks.

A safetensors file is 8 bytes (header length, little endian), a JSON header (name -> dtype, shape, byte range) and the
tensors' bytes. Headers are checked completely before a tensor is read.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.tail import check_tail

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class TensorInfo(NamedTuple):
    """One tensor's entry in the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, after checking that its size is exactly right.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if size < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{file} is truncated or is not a safetensors file: it has {size:,} bytes, and its header alone "
                    f"claims {header_bytes:,}. Copy or download it again."
                )
            header = json.loads(stream.read(header_bytes))
    except OSError as fault:
        raise CheckpointError(f"{file} cannot be read: {fault.strerror or fault}.") from None
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{file} is damaged: its header is not JSON ({fault}).") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is damaged: its header is not a JSON object.")
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(file, name, entry) for name, entry in header.items()}
    expected = 8 + header_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        kind = "truncated" if size < expected else "damaged"
        raise CheckpointError(f"{file} is {kind}: {size:,} bytes where its header asks for {expected:,}.")
    places = {
        name: (8 + header_bytes + entry["data_offsets"][0], info.shape)
        for (name, info), entry in zip(tensors.items(), header.values(), strict=True)
    }
    check_tail(file, places)
    return tensors


def _tensor_info(file: Path, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], tuple(map(operator.index, entry["shape"]))
        begin, end = entry["data_offsets"]
        right = 0 <= begin <= end and end - begin == math.prod(shape) * dtype.itemsize and min(shape, default=0) >= 0
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file} is damaged: tensor {name} has an unreadable header entry {entry!r}.") from None
    if not right:
        raise CheckpointError(f"{file} is damaged: tensor {name} of shape {list(shape)} does not fit its byte range.")
    return TensorInfo(dtype, shape, file)


# ---- write -----------------------------------------------------------------------------------------------------------


def plan_files(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, max_bytes: int) -> dict[str, list[str]]:
    """Distribute tensors over files of at most `max_bytes`, except for a single larger tensor."""
    files: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * dtype.itemsize
        if files[-1] and used + num_bytes > max_bytes:
            files.append([])
            used = 0
        files[-1].append(name)
        used += num_bytes
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": names for i, names in enumerate(files, 1)}


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write one safetensors file.

    Raises:
        OSError: the disk is full, or the file too large for it (recovered from safetensors' own error).
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(file)) from None


def write_safetensors(
    file: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, pieces: Mapping[str, Iterable[Tensor]]
) -> Iterator[int]:
    """Write a file from pieces of rows in order, contiguous and in `dtype`; yields the bytes of each piece."""
    code = next(code for code, known in _DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # so that the data are aligned to 8 bytes
    with open(file, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        for name in shapes:
            for piece in pieces[name]:
                stream.write(piece.reshape(-1).view(torch.uint8).numpy().data)
                yield piece.nbytes


def write_index(folder: Path, files: dict[str, list[str]], num_bytes: int) -> None:
    """Write the index of a checkpoint in several files."""
    weight_map = {name: file for file, names in files.items() for name in names}
    text = json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": weight_map}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
