"""Weights in large pages of memory: a decoded token reads all of them, and small pages cost the processor look-ups."""

from __future__ import annotations

import mmap
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from herd.ops.probe import available_memory

_PAGE_BYTES = 2 * 2**20
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MOST_OF_MEMORY = 0.6  # of what is available: weights that just fit stay where they are, in the file's own pages
_CPU = torch.device("cpu")
_CHUNK_BYTES = 16 * 2**20  # what is copied between looks at whether anybody still wants it


class _Place(NamedTuple):
    """Where a model holds a matrix."""

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.name)


class Moving:
    """A model's matrices on the CPU on their way into large pages.

    Files are mapped in small pages. A thread copies the weights, which takes from a third of a second to a few seconds
    a gigabyte (the system may have to make room first), while the model answers from where they are; `settle` then puts
    them in their places. In bfloat16 each token is read up to a third faster from there.
    """

    def __init__(self, model: nn.Module, places: list[_Place], num_bytes: int) -> None:
        self._model = weakref.ref(model)
        self._room, self._moved = _large_pages(num_bytes), dict[int, Tensor]()
        found = (place.tensor.detach() for place in places)  # the memory as it is now, whatever a place may hold later
        by_pointer = {tensor.data_ptr(): tensor for tensor in found}  # a tied embedding is one
        self._sources = list(by_pointer.values())
        self._thread = threading.Thread(target=self._copy, name="large pages")
        self._thread.start()

    @classmethod
    def begin(cls, model: nn.Module) -> Moving | None:
        """None where the system has no large pages, or the memory is short."""
        places = _places(model)
        storages = {place.tensor.data_ptr(): place.tensor.nbytes for place in places}
        num_bytes = sum(_padded(size) for size in storages.values())
        if not num_bytes or not _system_has_them() or num_bytes > _MOST_OF_MEMORY * available_memory(_CPU):
            return None
        try:
            with torch.inference_mode(False):  # the weights stay what they are, whoever asks for the first answer
                return cls(model, places, num_bytes)
        except OSError:  # no room after all: they stay where they are
            return None

    def wait(self) -> None:
        """Wait until everything is copied."""
        self._thread.join()

    def settle(self) -> bool:
        """Between steps: put what is copied in its place; whether it has been done. What changed meanwhile stays."""
        model = self._model()
        if self._thread.is_alive() or model is None:
            return False
        for place in _places(model):
            if (moved := self._moved.get(place.tensor.data_ptr())) is not None and moved.shape == place.tensor.shape:
                place.tensor.data = moved
        return True

    def _copy(self) -> None:
        begin = 0
        for source in self._sources:
            target = self._room[begin : begin + source.nbytes]
            if not self._copy_one(target.numpy(), source.view(torch.uint8).flatten().numpy()):
                return
            self._moved[source.data_ptr()] = target.view(source.dtype).view(source.shape)
            begin += _padded(source.nbytes)

    def _copy_one(self, target: np.ndarray, source: np.ndarray) -> bool:
        """False when nobody wants it any more: the model is gone, or the program ends, which waits for its threads."""
        for start in range(0, len(source), _CHUNK_BYTES):
            if self._model() is None or not threading.main_thread().is_alive():
                return False
            np.copyto(target[start : start + _CHUNK_BYTES], source[start : start + _CHUNK_BYTES])  # others may run
        return True


def _places(model: nn.Module) -> list[_Place]:
    owners = [(module, name) for module in model.modules() for name in ("weight", "weight_scale", "weight_least")]
    return [_Place(module, name) for module, name in owners if _is_matrix(module, name)]


def _is_matrix(module: nn.Module, name: str) -> bool:
    held = module._parameters.get(name)
    tensor = module._buffers.get(name) if held is None else held
    return tensor is not None and tensor.ndim == 2 and tensor.device.type == "cpu" and tensor.is_contiguous()


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
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory, Python's default, is given in small pages
    memory = mmap.mmap(-1, num_bytes + _PAGE_BYTES, flags=private)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % _PAGE_BYTES
    return whole[begin : begin + num_bytes]
