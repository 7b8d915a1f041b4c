"""Applying RoPE to queries and keys.

Channels i and i + C/2 are rotated as a pair (Hugging Face's layout).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from herd.kernels import device as device_kernels
from herd.kernels.native import counts, layer_kernels, loaded, pointers


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs of x (B, T, H, C) by the angles of cos and sin, both (B, T, 1, C) in x's dtype.

    cos holds each cosine twice, sin each sine negated and then plain: (x1, x2) -> (x1 c - x2 s, x2 c + x1 s).
    """
    if torch.compiler.is_compiling():  # see rms_norm
        return reference_apply_rotary(x, cos, sin)
    if not torch.is_grad_enabled() and device_kernels.serves(x):
        from herd.kernels import triton_layers

        if (out := triton_layers.rotary(x, cos, sin)) is not None:
            return out
    if not torch.is_grad_enabled():
        return _turned(x, cos, sin)
    native = x.shape[-1] % 32 == 0 and cos.shape[:2] == x.shape[:2] and layer_kernels(x, cos, sin)
    return (_NativeRotary if native else _Rotary).apply(x, cos, sin)


def reference_apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The reference for `apply_rotary`, in float32 on halves."""
    cos, sin = (table.float()[..., table.shape[-1] // 2 :] for table in (cos, sin))
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors  # the inverse is the rotation by the negative angle
        return (grad * cos).addcmul_(grad.roll(grad.shape[-1] // 2, -1), sin, value=-1), None, None


class _NativeRotary(torch.autograd.Function):
    """One pass forward and one backward."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _native_turned(x, cos, sin, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors
        return _native_turned(grad.contiguous(), cos, sin, -1.0), None, None


def _native_turned(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    out = torch.empty_like(x)
    sizes = counts(x.shape[0] * x.shape[1], *x.shape[2:])
    tensors = *pointers(x, cos, sin), ctypes.c_float(direction), *pointers(out)
    loaded("native_layers").rotary(*sizes, *tensors, torch.get_num_threads())
    return out
