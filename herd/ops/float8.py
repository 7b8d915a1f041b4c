"""Linear layers in float8 with row-wise scales, for shapes that are faster on this GPU by a short measurement.

The forward product of x and W is computed by `torch._scaled_mm`; of the two backward products the one for x is in
float8 too, the one for W, with its long sum over tokens, is in bfloat16. The reference rounds the same values through
float8, multiplies in float32, and runs anywhere.

Source: The Llama 3 Herd of Models, section 6.2 (row-wise FP8, for inference); for training: torchao's row-wise recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.ops.probe import best_seconds

FORMAT = torch.float8_e4m3fn
_MOST = torch.finfo(FORMAT).max
_LEAST_GAIN = 1.05  # in the measurement: less is not worth the rounding


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (M, N) scaled by rows to the range of float8: (M, N) float8 and the scales (M, 1) float32."""
    scale = x.detach().abs().amax(1, keepdim=True).float().clamp_min(1e-12) / _MOST
    return (x.float() / scale).clamp(-_MOST, _MOST).to(FORMAT), scale


def scaled_mm(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T through float8 with row-wise scales, in a's dtype; `torch._scaled_mm` on a GPU."""
    if a.device.type == "cpu":
        return reference_scaled_mm(a, b)
    (a8, a_scale), (b8, b_scale) = quantize_rows(a), quantize_rows(b)
    return torch._scaled_mm(a8, b8.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=a.dtype)


def reference_scaled_mm(a: Tensor, b: Tensor) -> Tensor:
    """The reference for `scaled_mm`: the same rounding, with the product in float32."""
    (a8, a_scale), (b8, b_scale) = quantize_rows(a), quantize_rows(b)
    return ((a8.float() * a_scale) @ (b8.float() * b_scale).T).to(a.dtype)


def float8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) times weight (out, in) through float8, in the forward pass and for the gradient of x."""
    return _Float8Linear.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return scaled_mm(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return scaled_mm(grad, weight.t().contiguous()), grad.t() @ x


class Float8Linear(nn.Linear):
    """An `nn.Linear` that multiplies in float8; its weight is not quantized."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return float8_linear(x, self.weight)


def use_float8(
    model: nn.Module, tokens: int, seconds: Callable[[str, int, int, int], float] | None = None
) -> dict[tuple[int, int], float]:
    """Use float8 for those linear layers of a Llama's blocks whose shape is faster with it, in place.

    `tokens` is the size of a micro-batch. Returns the measured speed-up of each shape (out, in). `seconds(kind, tokens,
    out, in)` measures a product of kind `bf16` or `float8`, by default on the model's device.
    """
    device = str(next(model.parameters()).device)
    seconds = seconds or (lambda kind, rows, out, inputs: probe(kind, rows, out, inputs, device))
    gains: dict[tuple[int, int], float] = {}
    blocks = model.get_submodule("model.layers")
    for module in [m for m in blocks.modules() if type(m) is nn.Linear]:
        shape = module.out_features, module.in_features
        if shape not in gains:
            gains[shape] = seconds("bf16", tokens, *shape) / seconds("float8", tokens, *shape)
        if gains[shape] >= _LEAST_GAIN:
            module.__class__ = Float8Linear  # keeps the weight and its name
    return gains


def probe(kind: str, tokens: int, out: int, inputs: int, device: str) -> float:
    """Seconds of one forward product on a device, quantization of x included."""
    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    weight = torch.randn(out, inputs, device=device, dtype=torch.bfloat16)
    work = {"bf16": lambda: F.linear(x, weight), "float8": lambda: scaled_mm(x, weight)}[kind]
    return best_seconds(work, 0.2, device)
