"""NF4: 4-bit weights, rounded to the nearest of sixteen quantiles of a normal distribution.

Blocks of 64 weights share one scale, their largest magnitude. A weight takes 4.5 bits (scales in float32).

Source: QLoRA (Dettmers et al. 2023), section 3 and appendix E.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Weights that share a scale."""
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values."""


class Nf4(NamedTuple):
    """A quantized weight."""

    packed: Tensor  # (N / 2,) uint8: two codes per byte, the first in the high bits
    scales: Tensor  # (N / BLOCK,) float32
    shape: tuple[int, ...]


def quantize(weight: Tensor) -> Nf4:
    """Round each weight to the nearest code times its block's scale; a short last block is padded with zeros."""
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    edges = torch.tensor([(a + b) / 2 for a, b in pairwise(CODE)], device=weight.device)
    codes = torch.bucketize(blocks / scales.clamp_min(1e-30)[:, None], edges).flatten().to(torch.uint8)
    return Nf4(codes[0::2] << 4 | codes[1::2], scales, tuple(weight.shape))


def dequantize(packed: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The dequantized weight, in `dtype`."""
    code = torch.tensor(CODE, device=packed.device)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).int()
    flat = (code[codes].view(-1, BLOCK) * scales[:, None]).flatten()
    return flat[: torch.Size(shape).numel()].view(shape).to(dtype)


def nf4_linear(x: Tensor, weight: Nf4) -> Tensor:
    """x (..., in) times a 4-bit weight (out, in); only x gets a gradient, and no dequantized weight is kept for it."""
    return _Nf4Linear.apply(x, weight.packed, weight.scales, weight.shape)


class _Nf4Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.shape = shape
        return F.linear(x, dequantize(packed, scales, shape, x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        packed, scales = ctx.saved_tensors
        weight = dequantize(packed, scales, ctx.shape, grad.dtype)
        return torch.matmul(grad, weight), None, None, None
