"""The gate of the feed-forward layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.ops import device_kernels


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise; one pass in the engine on a GPU."""
    if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and device_kernels.serves(gate):
        from herd.ops import triton_layers

        if (out := triton_layers.silu_times(gate, up)) is not None:
            return out
    return reference_silu_times(gate, up)


def reference_silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """The twin of `silu_times`, and the form that autograd and compilers see."""
    return F.silu(gate) * up
