"""Reading safetensors files that may be damaged: everything is checked before a tensor is touched.

A safetensors file is 8 bytes (header length, little endian), a JSON header (name -> dtype, shape, byte range) and the
tensors' bytes. Nothing in it is executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
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
    except ValueError as fault:
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
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
        dtype, shape = _DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
        begin, end = entry["data_offsets"]
        right = 0 <= begin <= end and end - begin == math.prod(shape) * dtype.itemsize and min(shape, default=0) >= 0
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file} is damaged: tensor {name} has an unreadable header entry {entry!r}.") from None
    if not right:
        raise CheckpointError(f"{file} is damaged: tensor {name} of shape {list(shape)} does not fit its byte range.")
    return TensorInfo(dtype, shape, file)
