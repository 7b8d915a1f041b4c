"""Root mean square normalization."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from herd.kernels import device as device_kernels
from herd.kernels.native import counts, layer_kernels, loaded, pointers


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x (..., D) to a mean square of one, then by weight (D,)."""
    if torch.compiler.is_compiling():  # the compiler fuses the plain form with its surroundings
        return reference_rms_norm(x, weight, eps)
    if not torch.is_grad_enabled() and device_kernels.serves(x):
        from herd.kernels import triton_layers

        if (out := triton_layers.rms_norm(x, weight, eps)) is not None:
            return out
    if not torch.is_grad_enabled():  # for a single token autograd's overhead exceeds the arithmetic
        return (x * _scale(x, eps).to(x.dtype)).mul_(weight)
    return (_NativeRMSNorm if layer_kernels(x, weight) else _RMSNorm).apply(x, weight, eps)


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The reference for `rms_norm`: float32 up to the cast back, then the weight, as in Meta's code."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def _scale(x: Tensor, eps: float) -> Tensor:
    """One over each row's root mean square: (..., D) -> (..., 1) float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """With few passes over x, since on the CPU each costs its memory traffic, and eager mode fuses nothing."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale.to(x.dtype)).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        narrow = scale.to(x.dtype)
        product = (grad * x).flatten(0, -2)
        grad_weight = torch.mm(narrow.view(1, -1), product).squeeze(0)
        along = torch.mv(product, weight).view_as(scale)  # the gradient's component along x
        shrink = (along * scale.pow(3)).div_(-x.shape[-1]).to(x.dtype)
        grad_x = (grad * weight).mul_(narrow).addcmul_(x, shrink)
        return grad_x, grad_weight, None


class _NativeRMSNorm(torch.autograd.Function):
    """One pass forward and one backward, in float32 with one rounding: more exact than the reference in bfloat16."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        tensors = *pointers(x, weight), ctypes.c_float(eps), *pointers(out, scale)
        loaded("native_layers").rms_norm_forward(*_sizes(x), *tensors, torch.get_num_threads())
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        grad, grad_x, grad_weight = grad.contiguous(), torch.empty_like(x), torch.empty_like(weight)
        tensors = pointers(x, weight, scale, grad, grad_x, grad_weight)
        loaded("native_layers").rms_norm_backward(*_sizes(x), *tensors, torch.get_num_threads())
        return grad_x, grad_weight, None


def _sizes(x: Tensor) -> list[ctypes.c_int64]:
    """Rows and width."""
    return counts(x.numel() // x.shape[-1], x.shape[-1])
