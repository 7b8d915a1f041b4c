"""Weights in large pages of memory: a decoded token reads all of them, and small pages cost the processor look-ups."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor, nn

from herd.infer.cache import available_memory

_PAGE_BYTES = 2 * 2**20
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MOST_OF_MEMORY = 0.6  # of what is available: weights that just fit stay where they are, in the file's own pages


def move_to_large_pages(model: nn.Module) -> bool:
    """Copy a model's matrices on the CPU into large pages, in place; whether it was done.

    Files are mapped in small pages. The copy takes the time of reading the weights once, and each token is then read
    up to a fifth faster. Nothing is moved where the system has no large pages, or the memory is short.
    """
    owners = [(module, name) for module in model.modules() for name in ("weight", "weight_scale")]
    found = [(module, name, tensor) for module, name in owners if (tensor := _matrix(module, name)) is not None]
    places = [tensor.data_ptr() for _, _, tensor in found]
    storages = {place: tensor for place, (_, _, tensor) in zip(places, found, strict=True)}  # a tied embedding is one
    num_bytes = sum(_padded(tensor.nbytes) for tensor in storages.values())
    if not num_bytes or not _system_has_them() or num_bytes > _MOST_OF_MEMORY * available_memory(torch.device("cpu")):
        return False
    room = _large_pages(num_bytes)
    moved, begin = {}, 0
    for pointer, tensor in storages.items():
        target = room[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        moved[pointer] = target.copy_(tensor)
        begin += _padded(tensor.nbytes)
    for place, (module, name, _) in zip(places, found, strict=True):
        getattr(module, name).data = moved[place]
    return True


def _matrix(module: nn.Module, name: str) -> Tensor | None:
    tensor = module._parameters.get(name)
    tensor = module._buffers.get(name) if tensor is None else tensor
    fits = tensor is not None and tensor.ndim == 2 and tensor.device.type == "cpu" and tensor.is_contiguous()
    return tensor if fits else None


def _padded(num_bytes: int) -> int:
    """Each matrix begins at a cache line."""
    return -(-num_bytes // 64) * 64


def _system_has_them() -> bool:
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _large_pages(num_bytes: int) -> Tensor:
    """Uninitialized memory that begins at a large page: (num_bytes,) uint8."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # memory that is shared, as Python would make it, has pages of its own kind
    memory = mmap.mmap(-1, num_bytes + _PAGE_BYTES, flags=private)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % _PAGE_BYTES
    return whole[begin : begin + num_bytes]
