"""Layers over llama.cpp's quantized blocks: weights stay in the few bits of their GGUF file.

A block is 32 (or 16) adjacent weights of a row with one float16 scale: weight = scale * number + least. Numbers have 4
or 8 bits; `least` is the block's minimum, absent if numbers are signed. Both are as in the file, except that those
which it stores as products (the K types) are rounded to float16: four times as fine as weights in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.kernels import decoding
from herd.ops.quantized import GROUP

_TILE_WEIGHTS = 2**21  # dequantized at a time, to stay in the processor's cache


class Blocks(NamedTuple):
    """A quantized matrix (N, K), K a multiple of 64."""

    weight: Tensor
    """4 bits: uint8 (N, K / 2), each 64 numbers with the first 32 in lower nibbles, the others in upper; 8 bits: int8
    (N, K)."""
    scale: Tensor
    """float16 (N, K / 32), or (N, K / 16) with 8 bits."""
    least: Tensor | None
    """float16 (N, K / 32); None means 0, which does not occur with 4 bits."""

    def rows(self, chosen: Tensor | slice) -> Blocks:
        """The blocks of some rows."""
        return Blocks(*(None if part is None else part[chosen].contiguous() for part in self))  # type: ignore[arg-type]


def pack_numbers(numbers: Tensor) -> Tensor:
    """4-bit numbers in the layout of `Blocks`: uint8 (N, K) -> (N, K / 2)."""
    pairs = numbers.unflatten(1, (-1, 2, GROUP))
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)


def widen(blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dequantized weights, each rounded once: (N, K)."""
    numbers = blocks.weight
    if numbers.dtype == torch.uint8:
        bytes_ = numbers.unflatten(1, (-1, GROUP))
        numbers = torch.stack((bytes_ & 15, bytes_ >> 4), dim=2).flatten(1)
    groups = numbers.unflatten(1, (blocks.scale.shape[1], -1)).float()
    wide = (groups * blocks.scale.float()[..., None]).flatten(1)
    if blocks.least is not None:
        wide = (wide.unflatten(1, (-1, GROUP)) + blocks.least.float()[..., None]).flatten(1)
    return wide.to(dtype)


def block_linear(x: Tensor, blocks: Blocks) -> Tensor:
    """x W^T with quantized W: (..., K) -> (..., N); the reference is `x @ widen(blocks).T`.

    For bfloat16 on a CPU a compiled kernel is used. Otherwise W is dequantized a part at a time.
    """
    fits = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    if fits and (out := decoding.linear(x, *blocks)) is not None:
        return out
    step = max(_TILE_WEIGHTS // x.shape[-1], 1)
    parts = (blocks.rows(slice(i, i + step)) for i in range(0, len(blocks.weight), step))
    return torch.cat([F.linear(x, widen(part, x.dtype)) for part in parts], dim=-1)


class _Holder(nn.Module):
    """A module with blocks as buffers: `weight`, `weight_scale` and `weight_least`."""

    weight: Tensor
    weight_scale: Tensor
    weight_least: Tensor | None

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        for name, part in zip(("weight", "weight_scale", "weight_least"), blocks, strict=True):
            self.register_buffer(name, part)

    @property
    def blocks(self) -> Blocks:
        """The current buffers, which may have been replaced."""
        return Blocks(self.weight, self.weight_scale, self.weight_least)


class BlockLinear(_Holder):
    """A replacement of an `nn.Linear` without bias."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__(blocks)
        self.out_features, width = blocks.weight.shape
        self.in_features = width * 2 if blocks.weight.dtype == torch.uint8 else width

    def forward(self, x: Tensor) -> Tensor:
        return block_linear(x, self.blocks)

    def logits(self, hidden: Tensor) -> Tensor:
        """As a head: (..., D) -> (..., V)."""
        return self(hidden)

    def extra_repr(self) -> str:
        bits = 4 if self.weight.dtype == torch.uint8 else 8
        return f"in_features={self.in_features}, out_features={self.out_features}, blocks of {bits} bits"


class BlockEmbedding(_Holder):
    """A replacement of an `nn.Embedding`, which dequantizes only the requested rows."""

    def __init__(self, blocks: Blocks, dtype: torch.dtype) -> None:
        super().__init__(blocks)
        self._dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        return widen(self.blocks.rows(tokens.flatten()), self._dtype).unflatten(0, tokens.shape)
