"""The quantized blocks of a GGUF file in the engine's layout: integers, scales and minimums as separate tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from herd.formats import ggml
from herd.formats.gguf import TYPES
from herd.ops.blocks import Blocks, pack_numbers

_STEP = 64  # weights: rows are stored in pairs of blocks
Parts = tuple[Tensor, Tensor, Tensor | None]
"""Of some blocks: integers (uint8 of 4 bits, or int8); scales; minimums."""


def to_blocks(content: Tensor, type: str) -> Blocks | None:
    """A matrix's bytes, uint8 (N, bytes of a row), in the engine's layout; None if the engine does not support it.

    It supports all types except Q2_K and MXFP4, in rows of a multiple of 64 weights.
    """
    block = TYPES[type]
    num_columns = content.shape[1] // block.num_bytes * block.num_weights
    if type not in _PARTS or num_columns % _STEP or not content.numel():
        return None
    pieces = []
    for rows in content.split(max(1, 2**22 // num_columns)):
        numbers, scale, least = _PARTS[type](rows.reshape(-1, block.num_bytes))
        numbers = numbers.reshape(len(rows), num_columns)
        weight = pack_numbers(numbers) if numbers.dtype == torch.uint8 else numbers
        pieces.append(
            (weight, *(None if part is None else part.reshape(len(rows), -1).half() for part in (scale, least)))
        )
    blocks = Blocks(*(None if part[0] is None else torch.cat(part) for part in zip(*pieces, strict=True)))  # type: ignore[arg-type]
    whole = all(torch.isfinite(part).all() for part in (blocks.scale, blocks.least) if part is not None)
    return blocks if whole else None  # a product of scales may be beyond float16


def _q8_0(blocks: Tensor) -> Parts:
    return blocks[:, 2:].contiguous().view(torch.int8), ggml.fp16(blocks, 0), None


def _q4_0(blocks: Tensor) -> Parts:
    scale = ggml.fp16(blocks, 0)
    return ggml.halves(blocks[:, 2:]), scale, -8 * scale


def _q4_1(blocks: Tensor) -> Parts:
    return ggml.halves(blocks[:, 4:]), ggml.fp16(blocks, 0), ggml.fp16(blocks, 2)


def _q5_0(blocks: Tensor) -> Parts:
    return (ggml.fives(blocks, 2).view(torch.int8) - 16), ggml.fp16(blocks, 0), None


def _q5_1(blocks: Tensor) -> Parts:
    return ggml.fives(blocks, 4).view(torch.int8), ggml.fp16(blocks, 0), ggml.fp16(blocks, 2)


def _iq4_nl(blocks: Tensor) -> Parts:
    return ggml.IQ4[ggml.halves(blocks[:, 2:]).int()].to(torch.int8), ggml.fp16(blocks, 0), None


def _iq4_xs(blocks: Tensor) -> Parts:
    scales, names = ggml.iq4_xs(blocks)
    return ggml.IQ4[names.int()].to(torch.int8), scales, None


def _q3_k(blocks: Tensor) -> Parts:
    scales, numbers = ggml.q3_k(blocks)
    return numbers.to(torch.int8), scales, None


def _q4_k(blocks: Tensor) -> Parts:
    scales, numbers, least = ggml.q4_k(blocks)
    return numbers, scales, -least


def _q5_k(blocks: Tensor) -> Parts:
    scales, numbers, least = ggml.q5_k(blocks)
    return numbers.view(torch.int8), scales, -least


def _q6_k(blocks: Tensor) -> Parts:
    scales, numbers = ggml.q6_k(blocks)
    return numbers.to(torch.int8), scales, None


_PARTS: dict[str, Callable[[Tensor], Parts]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
BLOCK_TYPES = frozenset(_PARTS)
"""The types that the engine can keep quantized."""
