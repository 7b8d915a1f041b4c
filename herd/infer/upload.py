"""Integers from the host to the device: all inputs of a step, in one asynchronous transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of int64 as tensors of the same shapes: on a GPU views of one tensor, on the CPU without a copy."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    flat = to_device(np.concatenate([array.ravel() for array in arrays]), device)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def to_device(array: np.ndarray, device: torch.device, into: Tensor | None = None) -> Tensor:
    """An array as a new tensor on a device, or copied `into` an existing one.

    From pinned memory, so that the copy is asynchronous; PyTorch keeps that memory until the copy is done.
    """
    source = torch.from_numpy(array)
    if device.type == "cuda":
        source = source.pin_memory()
    if into is not None:
        return into.copy_(source, non_blocking=True)
    return source.to(device, non_blocking=True)


def indices(numbers: Sequence[int], device: torch.device) -> Tensor:
    """A list of indices as a tensor: (N,) int64."""
    return to_device(np.array(numbers, dtype=np.int64), device)
