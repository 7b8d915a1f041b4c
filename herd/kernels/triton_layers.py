"""Triton kernels for the operations between the matmuls of a decode step, each in one pass.

A decode step on a GPU is a thousand small operations, each of which costs its launch. The references are in
`rms_norm.py`, `rope.py` and `swiglu.py`. This module imports Triton, so it is used only after `device_kernels.serves`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.device import Launch, run

_MOST_CHANNELS = 16_384  # of a row in one program


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """x (..., D) and weight (D,) -> (..., D); None if it is not supported or not compiled."""
    width = x.shape[-1]
    if width > _MOST_CHANNELS or weight.dtype != x.dtype:
        return None
    x = x.contiguous()
    out = torch.empty_like(x)
    padded = triton.next_power_of_2(width)
    launch = Launch(
        _rms_norm, (x.numel() // width,), (x, weight, out),
        {"EPS": eps, "CHANNELS": width, "WIDTH": padded, "num_warps": 4 if padded <= 2048 else 8},
    )  # fmt: skip
    return out if run([launch]) else None


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """x (B, T, H, C) rotated by the tables (B, T, 1, C) of `rotary_table`; None if it is not supported."""
    heads, channels = x.shape[2:]
    if not cos.is_contiguous() or not sin.is_contiguous() or cos.numel() * heads != x.numel():
        return None
    x = x.contiguous()
    out = torch.empty_like(x)
    shape = {"HEADS": heads, "CHANNELS": channels, "WIDTH": triton.next_power_of_2(channels), "num_warps": 1}
    launch = Launch(_rotary, (x.numel() // (heads * channels), heads), (x, cos, sin, out), shape)
    return out if run([launch]) else None


def silu_times(gate: Tensor, up: Tensor) -> Tensor | None:
    """silu(gate) * up, elementwise; None while the kernel is not compiled."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    launch = Launch(_silu_times, (-(-gate.numel() // 1024),), (gate, up, out, gate.numel()), {"num_warps": 4})
    return out if run([launch]) else None


@triton.jit
def _rms_norm(x, weight, out, EPS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = channel < CHANNELS
    wide = tl.load(x + row * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=mask, other=0.0)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / CHANNELS + EPS)
    result = normed.to(out.dtype.element_ty).to(tl.float32) * factor.to(tl.float32)
    tl.store(out + row * CHANNELS + channel, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["x"])
def _rotary(x, cos, sin, out, HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    token, channel = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = channel < CHANNELS
    start = (token * HEADS + tl.program_id(1)) * CHANNELS
    other = (channel + CHANNELS // 2) % CHANNELS
    here = tl.load(x + start + channel, mask=mask, other=0.0).to(tl.float32)
    there = tl.load(x + start + other, mask=mask, other=0.0).to(tl.float32)
    cosine = tl.load(cos + token * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    sine = tl.load(sin + token * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + start + channel, (here * cosine + there * sine).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _silu_times(gate, up, out, count):
    place = tl.program_id(0).to(tl.int64) * 1024 + tl.arange(0, 1024)
    mask = place < count
    wide = tl.load(gate + place, mask=mask, other=0.0).to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(out.dtype.element_ty).to(tl.float32)
    result = silu * tl.load(up + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
