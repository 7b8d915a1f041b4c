"""Turning queries and keys by their position."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + C/2) of x (B, T, H, C) by the angles of cos and sin (B, T, C/2)."""
    return reference_apply_rotary(x, cos, sin)


def reference_apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The twin of `apply_rotary`, in plain float32 arithmetic."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
