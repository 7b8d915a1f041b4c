"""SwiGLU, the gated activation of the feed-forward layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.kernels import device as device_kernels
from herd.kernels.native import counts, layer_kernels, loaded, pointers


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise; one pass in the engine on a GPU."""
    if torch.compiler.is_compiling():  # see rms_norm
        return reference_swiglu(gate, up)
    if not torch.is_grad_enabled() and device_kernels.serves(gate):
        from herd.kernels import triton_layers

        if (out := triton_layers.silu_times(gate, up)) is not None:
            return out
    if torch.is_grad_enabled() and gate.shape == up.shape and layer_kernels(gate, up):
        return _NativeSwiGLU.apply(gate, up)
    return reference_swiglu(gate, up)


def reference_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The reference for `swiglu`."""
    return F.silu(gate) * up


class _NativeSwiGLU(torch.autograd.Function):
    """One pass forward and one backward; silu's output is not kept."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate)
        loaded("native_layers").swiglu_forward(*counts(gate.numel()), *pointers(gate, up, out), torch.get_num_threads())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        gate, up = ctx.saved_tensors
        grad, grad_gate, grad_up = grad.contiguous(), torch.empty_like(gate), torch.empty_like(up)
        tensors = pointers(gate, up, grad, grad_gate, grad_up)
        loaded("native_layers").swiglu_backward(*counts(gate.numel()), *tensors, torch.get_num_threads())
        return grad_gate, grad_up
