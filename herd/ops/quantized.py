"""Linear layers with 8-bit or 4-bit weights and unquantized activations.

Decoding a token reads every weight once, so half the bytes is nearly twice the speed. Int8 has one scale per output
row; int4 one per 32 weights of a row, searched for the least squared error. `quantized_linear` and `int4_linear` are
the fast paths (our compiled kernels, else PyTorch's, else dequantization), the `reference_` functions their references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.kernels import decoding
from herd.kernels import device as device_kernels

LARGEST = 127
"""The largest int8 magnitude used; without -128 the range is symmetric."""

GROUP = 32
"""4-bit weights that share a scale."""

_STEP = 2 * GROUP  # the layout of 4-bit weights is in pairs of groups
_TORCH_KERNEL_ROWS = 16  # above this many tokens, a plain product is faster than PyTorch's int8 kernel
_TORCH_KERNEL_COLUMNS = 16  # it reads this many weights of a row at a time, even past the row's end
_TORCH_INT4_ROWS = 24  # the same for its int4 kernel
_DEVICE_KERNEL_ROWS = 256  # the same for our GPU kernels
_TILE_WEIGHTS = 2**21  # dequantized at a time, to stay in the processor's cache
_DEVICE_TILE_WEIGHTS = 2**28  # the same on a GPU, to bound memory
_SHARES = torch.tensor(
    [1.0, *(0.70 + 0.03 * n for n in range(17))]
)  # tried scales, relative to the one for the largest weight


# ---- int8: one scale a row -------------------------------------------------------------------------------------------


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each output row to int8: (N, K) -> int8 (N, K) and the rows' scales (N,) bfloat16.

    The scale is rounded up to bfloat16 first, so that nothing is clipped and the kernel's own scale type is exact.

    Example: the row [-1.0, 0.5] has scale 1/127 and becomes [-127, 64] (nearly: the scale is a bfloat16).
    """
    if _is_bf16_on_cpu(weight) and weight.shape[1] % 16 == 0 and (lib := decoding.kernels()) is not None:
        source = weight.detach().contiguous()
        whole, scale = torch.empty(source.shape, dtype=torch.int8), torch.empty(len(source), dtype=torch.bfloat16)
        lib.quantize_int8(source.data_ptr(), whole.data_ptr(), scale.data_ptr(), *source.shape, torch.get_num_threads())
        return whole, scale
    return reference_quantize_rows(weight)


def reference_quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The reference for `quantize_rows`."""
    parts = weight.detach().split(_tile_rows(weight.shape[1]))  # small enough to stay in the processor's cache
    rounded, scales = zip(*(_quantize_tile(part.float()) for part in parts), strict=True)
    return (rounded[0], scales[0]) if len(parts) == 1 else (torch.cat(rounded), torch.cat(scales))


def _quantize_tile(rows: Tensor) -> tuple[Tensor, Tensor]:
    exact = rows.abs().amax(dim=1) / LARGEST
    scale = exact.to(torch.bfloat16)
    scale = torch.where(scale.float() < exact, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = (rows / scale.float()[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return rounded.to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantize int8 rows: (N, K), (N,) -> (N, K)."""
    return weight.to(dtype) * scale.to(dtype)[:, None]


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x W^T with int8 W: (..., K), int8 (N, K), (N,) -> (..., N).

    For bfloat16 on a CPU, and for few tokens on a GPU once it is compiled, a kernel reads each weight as a byte.
    Otherwise the product is computed with unscaled W, and the scales are applied to the result.
    """
    rows = x.numel() // x.shape[-1]
    if rows <= _DEVICE_KERNEL_ROWS and device_kernels.serves(x):
        from herd.kernels import triton_linear

        if (out := triton_linear.int8_linear(x.reshape(rows, -1), weight, scale)) is not None:
            return out.unflatten(0, x.shape[:-1])
    if _is_bf16_on_cpu(x):
        if (out := decoding.linear(x, weight, scale)) is not None:
            return out
        if rows <= _TORCH_KERNEL_ROWS and weight.shape[1] % _TORCH_KERNEL_COLUMNS == 0:
            return torch._weight_int8pack_mm(x.reshape(rows, -1), weight, scale.to(x.dtype)).unflatten(0, x.shape[:-1])
    size = _tile_rows(weight.shape[1], x.device)
    if x.dtype == torch.float16:  # its range is too small for sums of unscaled integers
        parts = zip(weight.split(size), scale.split(size), strict=True)
        return torch.cat([F.linear(x, dequantize_rows(*part, x.dtype)) for part in parts], dim=-1)
    tiles = (F.linear(x, part.to(x.dtype)) for part in weight.split(size))
    return torch.cat(list(tiles), dim=-1) * scale.to(x.dtype)


def reference_quantized_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The reference for `quantized_linear`: dequantize to float32, multiply, round once."""
    return (x.float() @ dequantize_rows(weight, scale).T).to(x.dtype)


# ---- int4: one scale for 32 weights ----------------------------------------------------------------------------------


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize groups of 32 weights to 4 bits: (N, K) -> uint8 (N, K' / 2), scales bfloat16 (N, K' / 32).

    K' is K padded with zeros to a multiple of 64. A scale may be negative: the largest weight then becomes -8, which
    has no positive counterpart.

    Raises:
        ValueError: K is no multiple of 32.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"rows of {weight.shape[1]} weights cannot be split into groups of {GROUP}")
    rows = F.pad(weight.detach().float(), (0, -weight.shape[1] % _STEP)).contiguous()
    lib = decoding.kernels() if rows.device.type == "cpu" else None
    if lib is None:
        return reference_quantize_groups(rows)
    num_rows, num_columns = rows.shape
    packed = torch.empty(num_rows, num_columns // 2, dtype=torch.uint8)
    scale = torch.empty(num_rows, num_columns // GROUP, dtype=torch.bfloat16)
    lib.quantize_int4(
        rows.data_ptr(), _SHARES.data_ptr(), len(_SHARES), packed.data_ptr(), scale.data_ptr(), num_rows, num_columns,
        torch.get_num_threads(),
    )  # fmt: skip
    return packed, scale


def reference_quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The reference for `quantize_groups`, K a multiple of 64: try all scales, keep each group's best."""
    groups = weight.detach().float().unflatten(1, (-1, GROUP))  # (N, K / 32, 32)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    least = torch.full_like(largest, torch.inf)
    best, best_scale = torch.zeros_like(groups), torch.zeros_like(largest)
    for share in _SHARES.tolist():
        scale = (largest / -8 * share).to(torch.bfloat16).float()
        rounded = (groups * torch.where(scale == 0, 0.0, 1 / scale)).round().clamp(-8, 7)
        error = (rounded * scale - groups).square().sum(-1, keepdim=True)
        better = error < least
        least, best_scale = torch.where(better, error, least), torch.where(better, scale, best_scale)
        best = torch.where(better, rounded, best)
    return pack_nibbles(best.flatten(1).to(torch.int8)), best_scale.squeeze(-1).to(torch.bfloat16)


def pack_nibbles(weight: Tensor) -> Tensor:
    """int8 (N, K) from -8 to 7 -> uint8 (N, K / 2): of 64 weights the first 32 in lower nibbles, the last in upper."""
    nibbles = (weight + 8).to(torch.uint8).unflatten(1, (-1, 2, GROUP))
    return (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).flatten(1)


def pair_nibbles(in_order: Tensor) -> Tensor:
    """The layout of `pack_nibbles` from nibbles in their plain order: uint8 (N, K / 2) -> the same shape.

    In plain order a byte holds weight 2i below and 2i + 1 above; here weight i and weight i + 32 of 64.
    """
    if in_order.device.type == "cpu" and (lib := decoding.kernels()) is not None:
        source = in_order.contiguous()
        out = torch.empty_like(source)
        lib.pair_nibbles(source.data_ptr(), out.data_ptr(), source.numel() // GROUP, torch.get_num_threads())
        return out
    return reference_pair_nibbles(in_order)


def reference_pair_nibbles(in_order: Tensor) -> Tensor:
    """The reference for `pair_nibbles`."""
    first, last = in_order.unflatten(1, (-1, 2, GROUP // 2)).unbind(2)  # (N, K / 64, 16) each
    even, odd = (first & 15) | (last << 4), (first >> 4) | (last & 0xF0)
    return torch.stack((even, odd), dim=-1).flatten(1)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`: uint8 (N, K / 2) -> int8 (N, K)."""
    bytes_ = packed.unflatten(1, (-1, GROUP))
    return torch.stack((bytes_ & 15, bytes_ >> 4), dim=2).flatten(1).to(torch.int8) - 8


def dequantize_groups(packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantize 4-bit rows: (N, K / 2), (N, K / 32) -> (N, K)."""
    if packed.device.type == "cpu" and dtype == torch.bfloat16 and (lib := decoding.kernels()) is not None:
        num_rows, num_columns = packed.shape[0], packed.shape[1] * 2
        out = torch.empty(num_rows, num_columns, dtype=dtype)
        threads = torch.get_num_threads()
        lib.widen_int4(packed.data_ptr(), scale.data_ptr(), out.data_ptr(), num_rows, num_columns, threads)
        return out
    groups = unpack_nibbles(packed).unflatten(1, (-1, GROUP)).float()
    return (groups * scale.float()[..., None]).flatten(1).to(dtype)


def int4_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x W^T with 4-bit W: (..., K), uint8 (N, K' / 2), (N, K' / 32) -> (..., N).

    Compiled kernels are used as in `quantized_linear`. Otherwise W is dequantized a part at a time.
    """
    rows = x.numel() // x.shape[-1]
    if rows <= _DEVICE_KERNEL_ROWS and device_kernels.serves(x):
        from herd.kernels import triton_linear

        if (out := triton_linear.int4_linear(x.reshape(rows, -1), packed, scale)) is not None:
            return out.unflatten(0, x.shape[:-1])
    if _is_bf16_on_cpu(x) and (out := decoding.linear(x, packed, scale)) is not None:
        return out
    x = F.pad(x, (0, packed.shape[1] * 2 - x.shape[-1])) if packed.shape[1] * 2 != x.shape[-1] else x
    size = _tile_rows(x.shape[-1], x.device)
    parts = zip(packed.split(size), scale.split(size), strict=True)
    return torch.cat([F.linear(x, dequantize_groups(*part, x.dtype)) for part in parts], dim=-1)


def reference_int4_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """The reference for `int4_linear`: dequantize to float32, multiply, round once."""
    weight = unpack_nibbles(packed).float() * scale.float().repeat_interleave(GROUP, dim=1)
    return (x.float() @ weight[:, : x.shape[-1]].T).to(x.dtype)


def _is_bf16_on_cpu(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _tile_rows(num_columns: int, device: torch.device | None = None) -> int:
    weights = _TILE_WEIGHTS if device is None or device.type == "cpu" else _DEVICE_TILE_WEIGHTS
    return max(weights // num_columns, 1)


# ---- layers ----------------------------------------------------------------------------------------------------------


class QuantizedLinear(nn.Module):
    """A replacement of an `nn.Linear` without bias, with int8 `weight` (N, K) and `weight_scale` (N,)."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.bfloat16, device=device))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> QuantizedLinear:
        """Quantize a layer's weight."""
        layer = cls(linear.in_features, linear.out_features, device="meta")
        layer.weight, layer.weight_scale = quantize_rows(linear.weight)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.weight_scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """As a head: (..., D) -> (..., V)."""
        return self(hidden)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"


class Int4Linear(nn.Module):
    """A replacement of an `nn.Linear` without bias, with `weight` and `weight_scale` as from `quantize_groups`.

    If our kernels cannot be compiled, PyTorch's are used, on a second copy of the weights in its layout.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        width = in_features + -in_features % _STEP
        self.register_buffer("weight", torch.zeros(out_features, width // 2, dtype=torch.uint8, device=device))
        self.register_buffer(
            "weight_scale", torch.ones(out_features, width // GROUP, dtype=torch.bfloat16, device=device)
        )
        self._for_torch: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int4Linear:
        """Quantize a layer's weight."""
        layer = cls(linear.in_features, linear.out_features, device="meta")
        layer.weight, layer.weight_scale = quantize_groups(linear.weight)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        fits = rows <= _TORCH_INT4_ROWS and self.out_features % 64 == 0
        if fits and _is_bf16_on_cpu(x) and decoding.is_out_of_reach():
            return self._by_torch(x.reshape(rows, -1)).unflatten(0, x.shape[:-1])
        return int4_linear(x, self.weight, self.weight_scale)

    def _by_torch(self, x: Tensor) -> Tensor:
        """PyTorch's packed kernel: (M, K) -> (M, N)."""
        if self._for_torch is None:
            nibbles = (unpack_nibbles(self.weight) + 8).to(torch.int32)
            scale_and_zero = torch.stack((self.weight_scale.T, torch.zeros_like(self.weight_scale.T)), dim=-1)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
            self._for_torch = packed, scale_and_zero.contiguous()
        x = F.pad(x, (0, self.weight.shape[1] * 2 - x.shape[-1]))
        packed, scale_and_zero = self._for_torch
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), packed, GROUP, scale_and_zero)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, int4 in groups of {GROUP}"


class DecodingLinear(nn.Linear):
    """An `nn.Linear` without bias that multiplies bfloat16 in our kernel, with a shared weight."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> DecodingLinear:
        """A layer that shares `linear`'s weight."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight = linear.weight
        return layer

    def forward(self, x: Tensor) -> Tensor:
        fits = _is_bf16_on_cpu(x) and self.weight.dtype == torch.bfloat16
        out = decoding.linear(x, self.weight) if fits else None
        return F.linear(x, self.weight) if out is None else out

    def logits(self, hidden: Tensor) -> Tensor:
        """As a head: (..., D) -> (..., V)."""
        return self(hidden)


def replace_linears(
    model: nn.Module, names: Iterable[str], make: Callable[[nn.Linear], nn.Module] = QuantizedLinear.from_linear
) -> None:
    """Replace each named linear layer by `make(linear)`, one at a time, to save memory.

    Layers with a bias are not replaced, since the layers here have none.
    """
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        if getattr(getattr(owner, leaf), "bias", None) is None:
            setattr(owner, leaf, make(getattr(owner, leaf)))
