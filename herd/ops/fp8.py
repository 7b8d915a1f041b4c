"""FP8 matrix products as in the Llama 3 paper: scales for each row of the weight and for each token, bounded above.

The weight is stored in FP8 (e4m3); each token's activations are quantized dynamically. Huge activations would give a
token a huge scale, and its small values would become zero, so the maximum for the scale is bounded by 1200; larger
values saturate.

Source: "The Llama 3 Herd of Models", section 6.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

UPPER_BOUND = 1200.0
"""The upper bound of the maximum that determines a token's scale."""

FP8 = torch.float8_e4m3fn
LARGEST_FP8 = torch.finfo(FP8).max  # 448


def quantize_fp8(rows: Tensor, upper_bound: float | None = None) -> tuple[Tensor, Tensor]:
    """Quantize rows to FP8: (..., K) -> FP8 (..., K) and the scales (...) float32.

    Example: the row [2.0, -448.0] is unchanged, with scale 1; with 4480.0 instead of -448.0 and the bound 1200, the
    scale is 1200 / 448 and the large value saturates.
    """
    wide = rows.float()
    largest = wide.abs().amax(-1).clamp(1e-12, upper_bound)
    factor = largest / LARGEST_FP8
    return (wide / factor[..., None]).clamp(-LARGEST_FP8, LARGEST_FP8).to(FP8), factor


def fp8_linear(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """x W^T with both in FP8: (..., K), FP8 (N, K), (N,) float32 -> (..., N).

    On a GPU with FP8 the products are in FP8; elsewhere the same values are multiplied in x's dtype, which holds every
    FP8 value exactly, or in float32 if x is float16, whose range is too small for the sums.
    """
    small, token_factor = quantize_fp8(x, UPPER_BOUND)
    if _has_products(x, weight):
        out = torch._scaled_mm(
            small.flatten(0, -2),
            weight.T,
            scale_a=token_factor.reshape(-1, 1),
            scale_b=factor.reshape(1, -1),
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return out.unflatten(0, x.shape[:-1])
    wide = torch.float32 if x.dtype == torch.float16 else x.dtype
    products = (small.to(wide) @ weight.to(wide).T).float()
    return (products * token_factor[..., None] * factor).to(x.dtype)


def _has_products(x: Tensor, weight: Tensor) -> bool:
    """Whether `torch._scaled_mm` supports them with row-wise scales: bfloat16, both sizes of W multiples of 16."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or any(size % 16 for size in weight.shape):
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 9)


def reference_fp8_linear(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """The reference for `fp8_linear`: dequantize to float32, then multiply."""
    small, token_factor = quantize_fp8(x, UPPER_BOUND)
    return ((small.float() * token_factor[..., None]) @ (weight.float() * factor[:, None]).T).to(x.dtype)


class Fp8Linear(nn.Module):
    """A replacement of an `nn.Linear` without bias, with FP8 `weight` (N, K) and `weight_scale` (N,) float32."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=FP8, device=device))
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32, device=device))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Fp8Linear:
        """Quantize a layer's weight."""
        layer = cls(linear.in_features, linear.out_features, device="meta")
        layer.weight, layer.weight_scale = quantize_fp8(linear.weight.detach())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return fp8_linear(x, self.weight, self.weight_scale)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, fp8 by rows"
