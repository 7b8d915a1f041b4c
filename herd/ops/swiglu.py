"""The gate of the feed-forward layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, element by element."""
    return reference_swiglu(gate, up)


def reference_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The twin of `swiglu`."""
    return F.silu(gate) * up
