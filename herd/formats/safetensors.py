"""Safetensors files: read though they may be damaged, written though they may be larger than the memory.

A safetensors file is 8 bytes (header length, little endian), a JSON header (name -> dtype, shape, byte range) and the
tensors' bytes. Nothing in it is executed, and everything is checked before a tensor is touched.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from herd.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class TensorInfo(NamedTuple):
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path


def tensors_in_folder(folder: Path) -> dict[str, TensorInfo]:
    """Name, dtype, shape and file of every tensor of a checkpoint folder, in one file or in shards.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the index disagrees with its shards.
    """
    if (folder / INDEX).exists():
        return _tensors_by_index(folder)
    if not (folder / SINGLE).exists():
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}: no weights to load.")
    return read_header(folder / SINGLE)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, after checking that the file is exactly as long as they need.

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
    return tensors


def read_tensors(tensors: dict[str, TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its name, file by file. Bytes come from the page cache when first touched, not before.

    Raises:
        CheckpointError: a file is damaged.
    """
    for file in sorted({info.file for info in tensors.values()}):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in (name for name, info in tensors.items() if info.file == file):
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(f"{file} is damaged: {fault}.") from None


def _tensors_by_index(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise CheckpointError(f"{index} is damaged: no readable `weight_map` ({fault}).") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the file {shard!r}: only safetensors files beside it are read.")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard} is missing, though {INDEX} names it.")
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        found |= read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{folder / shard} lacks the tensor {name}, which {INDEX} places there.")
    return {name: found[name] for name in weight_map}


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
    """Which tensors go into which file, so that none but a lone large tensor exceeds `max_bytes`."""
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
        OSError: the disk is full, or files may not grow that large; safetensors' own error hides which.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(file)) from None


def write_safetensors(
    file: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, pieces: dict[str, Iterable[Tensor]]
) -> Iterator[int]:
    """Write a file whose tensors come as rows in order, as `dtype` and contiguous; yields the bytes of each piece."""
    code = next(code for code, known in _DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # so that the numbers begin at a multiple of eight
    with open(file, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        for name in shapes:
            for piece in pieces[name]:
                stream.write(piece.reshape(-1).view(torch.uint8).numpy().data)
                yield piece.nbytes


def write_index(folder: Path, files: dict[str, list[str]], num_bytes: int) -> None:
    """Say which file holds which tensor, where there are several."""
    weight_map = {name: file for file, names in files.items() for name in names}
    text = json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": weight_map}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
