"""PyTorch's `.pth` and `.bin` files: read without executing code, written in chunks.

A `.pth` is an uncompressed zip archive: `data.pkl` has the name, dtype, shape and record of each tensor; the records
follow as plain bytes. `torch.save` writes the same file, but needs all tensors in memory.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from herd.errors import CheckpointError

_ROOT = "consolidated"
_ALIGNMENT = 64  # of a record's first byte, as torch.save aligns it for mapping
_HEADER_BYTES = 30 + 20  # a local header without its name, with the field of 64-bit sizes
_DATE = (1980, 1, 1, 0, 0, 0)
_STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


def read_pth(file: Path) -> dict[str, Tensor]:
    """A file's tensors by name, memory-mapped if it is a zip archive (PyTorch 1.6 and later).

    Raises:
        CheckpointError: it is damaged, or holds other objects, which could execute code and are not loaded.
    """
    try:
        with open(file, "rb") as stream:
            is_archive = stream.read(2) == b"PK"
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} holds something other than tensors, and was not opened: it could run code."
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise CheckpointError(f"{file} is truncated or damaged: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{file} does not hold a dictionary of tensors.")
    for name, tensor in content.items():
        if tensor.layout != torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise CheckpointError(f"{file}: tensor {name} is {kind}, expected floats.")
    return dict(content)


# ---- write -----------------------------------------------------------------------------------------------------------


class TensorPlan(NamedTuple):
    """One tensor of a file to be written."""

    name: str
    shape: tuple[int, ...]
    same_as: str | None = None
    """The tensor whose storage it shares."""


class _Storage(NamedTuple):
    """A reference to a tensor's storage in the pickle."""

    kind: type
    key: str
    num_weights: int


class _Described:
    """A tensor without its data, pickled as torch.save pickles a tensor."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = torch.empty(self.shape, device="meta").stride()
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", obj.kind, obj.key, "cpu", obj.num_weights
        return None


def write_pth(
    file: Path, plans: list[TensorPlan], dtype: torch.dtype, pieces: Mapping[str, Iterable[Tensor]]
) -> Iterator[int]:
    """Write tensors for `torch.load(weights_only=True)`; yields the bytes of each piece.

    `pieces` gives the rows of each tensor with its own storage in order, contiguous and in `dtype`.

    Raises:
        CheckpointError: this format does not support the dtype.
    """
    if dtype not in _STORAGES:
        raise CheckpointError(
            f"{file.name} cannot hold {str(dtype).removeprefix('torch.')}; choose bfloat16 or float32."
        )
    own = [plan for plan in plans if plan.same_as is None]
    keys = {plan.name: str(number) for number, plan in enumerate(own)}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_record(archive, "data.pkl", _pickled(plans, keys, dtype))
        _write_record(archive, "byteorder", b"little")
        for plan in own:
            with archive.open(_aligned(archive, f"data/{keys[plan.name]}"), "w", force_zip64=True) as record:
                for piece in pieces[plan.name]:
                    record.write(piece.reshape(-1).view(torch.uint8).numpy().data)
                    yield piece.nbytes
        _write_record(archive, "version", b"3\n")


def _pickled(plans: list[TensorPlan], keys: dict[str, str], dtype: torch.dtype) -> bytes:
    table = {}
    for plan in plans:
        num_weights = torch.Size(plan.shape).numel()
        table[plan.name] = _Described(
            _Storage(_STORAGES[dtype], keys[plan.same_as or plan.name], num_weights), plan.shape
        )
    content = io.BytesIO()
    _Pickler(content, protocol=2).dump(table)
    return content.getvalue()


def _write_record(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}", _DATE), content)


def _aligned(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The header of a record, padded so that its data begin at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _DATE)
    assert archive.fp is not None
    begin = archive.fp.tell() + _HEADER_BYTES + len(info.filename) + 4
    filling = -begin % _ALIGNMENT
    info.extra = b"FB" + filling.to_bytes(2, "little") + bytes(filling)
    return info
