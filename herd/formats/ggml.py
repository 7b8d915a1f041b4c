"""The quantized block types of llama.cpp's files: 32 or 256 adjacent weights of a row that share a scale.

`quantize` gives the same bytes as ggml's reference (except for a few in blocks of 256, see `kquants.py`). Every type
that is read can be dequantized.

Source: ggml-quants.c of ggml; each function's docstring gives the layout of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from herd.formats.gguf import TYPES
from herd.formats.kquants import to_q4_k, to_q5_k, to_q6_k

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""Unquantized types."""

_CACHED_WEIGHTS = 250_000


def quantize(rows: Tensor, type: str) -> Tensor:
    """Weights as bytes of a type: (N, K) -> uint8 (N, bytes of a row).

    A plain type is a cast. K must be a multiple of the type's block.
    """
    if type in PLAIN:
        return rows.to(PLAIN[type]).contiguous().view(torch.uint8)
    block = TYPES[type]
    content = torch.empty(rows.numel() // block.num_weights, block.num_bytes, dtype=torch.uint8)
    for piece, out in _pieces(rows.reshape(-1, block.num_weights), content):
        out.copy_(QUANTIZERS[type](piece.to(torch.float32)))
    return content.view(len(rows), -1)


def dequantize(content: Tensor, type: str) -> Tensor:
    """The weights in a tensor's bytes: uint8 (N, bytes of a row) -> (N, K), float32 unless the type is a plain one."""
    if type in PLAIN:
        return content.view(PLAIN[type])
    block = TYPES[type]
    blocks = content.reshape(-1, block.num_bytes)
    rows = torch.empty(len(blocks), block.num_weights)
    for piece, out in _pieces(blocks, rows):
        out.copy_(_DEQUANTIZERS[type](piece))
    return rows.view(len(content), -1)


def _pieces(source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in pieces that fit into the processor's cache: ten times as fast as all at once."""
    step = max(1, _CACHED_WEIGHTS // max(source.shape[1], target.shape[1]))
    return zip(source.split(step), target.split(step), strict=True)


# ---- write -----------------------------------------------------------------------------------------------------------


def _to_q8_0(blocks: Tensor) -> Tensor:
    """fp16 scale, 32 x int8: the largest weight becomes 127 or -127."""
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    size = scaled.abs()
    whole = size.floor()
    rounded = (whole + (2 * (size - whole)).floor()) * scaled.sign()  # halves away from zero, as C's roundf
    return torch.cat((_fp16_bytes(scale), rounded.to(torch.int8).view(torch.uint8)), 1)


def _to_q4_0(blocks: Tensor) -> Tensor:
    """fp16 scale, 32 x 4 bits: the weight largest in size becomes -8; the low half of a byte holds the first 16."""
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    numbers = (blocks * _inverse(scale) + 8.5).to(torch.uint8).clamp_max(15)
    return torch.cat((_fp16_bytes(scale), numbers[:, :16] | numbers[:, 16:] << 4), 1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _fp16_bytes(scale: Tensor) -> Tensor:
    return scale.to(torch.float16).view(torch.uint8)


def _to_q5_0(blocks: Tensor) -> Tensor:
    """fp16 scale, 4 bytes of fifth bits, 16 bytes: the weight largest in size becomes -16."""
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -16
    numbers = (blocks * _inverse(scale) + 16.5).to(torch.uint8).clamp_max(31)
    return torch.cat((_fp16_bytes(scale), _five_bits(numbers)), 1)


def _to_q5_1(blocks: Tensor) -> Tensor:
    """fp16 scale, fp16 minimum, 4 bytes of fifth bits, 16 bytes."""
    least = blocks.amin(1, keepdim=True)
    scale = (blocks.amax(1, keepdim=True) - least) / 31
    numbers = ((blocks - least) * _inverse(scale) + 0.5).to(torch.uint8).clamp_max(31)
    return torch.cat((_fp16_bytes(scale), _fp16_bytes(least), _five_bits(numbers)), 1)


def _five_bits(numbers: Tensor) -> Tensor:
    """32 numbers of 5 bits in 20 bytes: the fifth bits, then two fours in a byte."""
    fifth = (numbers.view(-1, 4, 8) >> 4 << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
    return torch.cat((fifth, numbers[:, :16] & 15 | (numbers[:, 16:] & 15) << 4), 1)


QUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _to_q8_0,
    "Q4_0": _to_q4_0,
    "Q5_0": _to_q5_0,
    "Q5_1": _to_q5_1,
    "Q4_K": to_q4_k,
    "Q5_K": to_q5_k,
    "Q6_K": to_q6_k,
}
"""The quantized types that are written."""


# ---- read ------------------------------------------------------------------------------------------------------------


def fp16(blocks: Tensor, begin: int) -> Tensor:
    """The float16 at a place of each block, widened: (N, 1)."""
    return blocks[:, begin : begin + 2].contiguous().view(torch.float16).float()


def halves(content: Tensor) -> Tensor:
    """Two numbers of 4 bits in a byte: (N, n) -> (N, 2n), all low halves first."""
    return torch.cat((content & 15, content >> 4), 1)


def fives(blocks: Tensor, begin: int) -> Tensor:
    """32 numbers of 5 bits, from a place of each block on: 4 bytes of fifth bits, 16 bytes."""
    return halves(blocks[:, begin + 4 : begin + 20]) | _fifth_bits(blocks[:, begin : begin + 4]) << 4


def _fifth_bits(content: Tensor) -> Tensor:
    """One bit of each of 32 numbers, the first in the lowest: uint8 (N, 4) -> uint8 (N, 32)."""
    return (content[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).reshape(len(content), 32)


def _from_q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8) * fp16(blocks, 0)


def _from_q4_0(blocks: Tensor) -> Tensor:
    return (halves(blocks[:, 2:]).float() - 8) * fp16(blocks, 0)


def _from_q4_1(blocks: Tensor) -> Tensor:
    """fp16 scale, fp16 minimum, 16 bytes."""
    return halves(blocks[:, 4:]) * fp16(blocks, 0) + fp16(blocks, 2)


def _from_q5_0(blocks: Tensor) -> Tensor:
    """fp16 scale, 4 bytes of fifth bits, 16 bytes."""
    return (fives(blocks, 2).float() - 16) * fp16(blocks, 0)


def _from_q5_1(blocks: Tensor) -> Tensor:
    """fp16 scale, fp16 minimum, 4 bytes of fifth bits, 16 bytes."""
    return fives(blocks, 4) * fp16(blocks, 0) + fp16(blocks, 2)


def _scales_and_least(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minimums, of 6 bits each in 12 bytes, times their fp16 scales: two (N, 8, 1)."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 63, third & 15 | first >> 2 & 48), 1)
    least = torch.cat((second & 63, third >> 4 | second >> 2 & 48), 1)
    return (fp16(blocks, 0) * scales)[..., None], (fp16(blocks, 2) * least)[..., None]


def q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, numbers and what is taken off; in the file fp16 scale of scales, fp16 scale of minimums, 12 bytes of
    both, 128 bytes: 8 groups of 32 weights."""
    content = blocks[:, 16:].reshape(-1, 4, 1, 32)
    numbers = torch.cat((content & 15, content >> 4), 2).reshape(-1, 8, 32)
    scales, least = _scales_and_least(blocks)
    return scales, numbers, least


def q5_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As Q4_K, with 32 bytes of fifth bits before the 128: bit g of byte i belongs to weight i of group g."""
    scales, least = _scales_and_least(blocks)
    fifth = blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    content = blocks[:, 48:].reshape(-1, 4, 1, 32)
    numbers = torch.cat((content & 15, content >> 4), 2).reshape(-1, 8, 32) | fifth << 4
    return scales, numbers, least


def _from_q4_k(blocks: Tensor) -> Tensor:
    scales, numbers, least = q4_k(blocks)
    return (scales * numbers - least).reshape(len(blocks), 256)


def _from_q5_k(blocks: Tensor) -> Tensor:
    scales, numbers, least = q5_k(blocks)
    return (scales * numbers - least).reshape(len(blocks), 256)


def q6_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and numbers; in the file 128 bytes of low 4 bits, 64 of high 2 bits, 16 int8 scales, fp16 scale of scales:
    16 groups of 16 weights."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = torch.cat((low & 15, low >> 4), 2).reshape(-1, 8, 32)
    high = (high >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3).reshape(-1, 8, 32)
    numbers = ((low | high << 4).float() - 32).reshape(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * fp16(blocks, 208)
    return scales[..., None], numbers


def _from_q6_k(blocks: Tensor) -> Tensor:
    scales, numbers = q6_k(blocks)
    return (scales * numbers).reshape(len(blocks), 256)


def _from_q2_k(blocks: Tensor) -> Tensor:
    """16 bytes of scale and minimum (4 bits each), 64 of 2 bits, fp16 scales of both: 16 groups of 16 weights."""
    scales, least = (blocks[:, :16] & 15).float()[..., None], (blocks[:, :16] >> 4).float()[..., None]
    numbers = _pairs_of_bits(blocks[:, 16:80]).reshape(-1, 16, 16)
    scale, scale_of_least = fp16(blocks, 80)[..., None], fp16(blocks, 82)[..., None]
    return (scale * scales * numbers - scale_of_least * least).reshape(len(blocks), 256)


def q3_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and numbers; in the file 32 bytes of third bits (unset: minus 4), 64 of 2 bits, 16 scales of 6 bits in 12
    bytes, fp16 scale of scales."""
    unset = (blocks[:, None, :32] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1 ^ 1) << 2
    numbers = _pairs_of_bits(blocks[:, 32:96]).float() - unset.float()
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    low = torch.cat((low & 15, low >> 4), 1)
    high = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    scales = (low | high << 4).float() - 32
    return (scales * fp16(blocks, 108))[..., None], numbers.reshape(-1, 16, 16)


def _from_q3_k(blocks: Tensor) -> Tensor:
    scales, numbers = q3_k(blocks)
    return (scales * numbers).reshape(len(blocks), 256)


def _pairs_of_bits(content: Tensor) -> Tensor:
    """(N, 64) -> (N, 8, 32): two bits of each of 32 bytes, the lowest first."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    return (content.reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 8, 32)


IQ4 = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=torch.float32)
"""The values of IQ4_NL and IQ4_XS."""
_FP4 = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.float32)


def _from_iq4_nl(blocks: Tensor) -> Tensor:
    """fp16 scale, 32 x 4 bits that name one of sixteen values."""
    return IQ4[halves(blocks[:, 2:]).int()] * fp16(blocks, 0)


def iq4_xs(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales, and which values; in the file fp16 scale, 2 bytes of high and 4 of low bits of 8 scales, 128 bytes as
    IQ4_NL's: 8 groups of 32 weights."""
    high = blocks[:, 2:4, None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8) & 3
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), 2)
    scales = (low.reshape(-1, 8) | high.reshape(-1, 8) << 4).float() - 32
    content = blocks[:, 8:].reshape(-1, 8, 16)
    return (scales * fp16(blocks, 0))[..., None], torch.cat((content & 15, content >> 4), 2)


def _from_iq4_xs(blocks: Tensor) -> Tensor:
    scales, names = iq4_xs(blocks)
    return (scales * IQ4[names.int()]).reshape(len(blocks), 256)


def _from_mxfp4(blocks: Tensor) -> Tensor:
    """The exponent of a power of two, 32 x 4 bits that name an FP4 value (here doubled, the power halved)."""
    scale = torch.exp2(blocks[:, :1].double() - 128).float()
    return _FP4[halves(blocks[:, 1:]).int()] * scale


_DEQUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _from_q8_0,
    "Q4_0": _from_q4_0,
    "Q4_1": _from_q4_1,
    "Q5_0": _from_q5_0,
    "Q5_1": _from_q5_1,
    "MXFP4": _from_mxfp4,
    "IQ4_NL": _from_iq4_nl,
    "IQ4_XS": _from_iq4_xs,
    "Q2_K": _from_q2_k,
    "Q3_K": _from_q3_k,
    "Q4_K": _from_q4_k,
    "Q5_K": _from_q5_k,
    "Q6_K": _from_q6_k,
}
