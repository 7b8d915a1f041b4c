"""The block types of llama.cpp's Q4_K_M, Q5_K_M and Q6_K files, and which tensor of a Llama gets which.

A block is 256 adjacent weights in groups, whose scales share a scale. As in ggml's reference, scales are found by
search: about twenty are tried for each group, and the one with the least weighted error is used.

Source: `quantize_row_q4_K_ref` and the others in ggml-quants.c, `llama_tensor_get_type` in llama-quant.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from herd.model.config import ModelConfig

MIXES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K"}
"""The type of most tensors of a mix."""

_WITHOUT_256 = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # if rows are no multiple of 256
_LEAST_SIZE = 1e-15  # smaller weights count as zero
_LAYERS_OF_70B = 80


# ---- which tensor is stored as what ----------------------------------------------------------------------------------


def type_in_mix(config: ModelConfig, name: str, shape: tuple[int, ...], mix: str) -> str:
    """The type of a matrix, by Hugging Face's name: the head, and some layers' v_proj and down_proj, get more bits.

    These are the first eighth of the layers, the last eighth, and every third one between; in Q6_K all are the same.
    """
    wanted = MIXES[mix]
    is_head = name == "lm_head.weight" or (name == "model.embed_tokens.weight" and config.tie_word_embeddings)
    has_more = name.endswith(("v_proj.weight", "down_proj.weight")) and _gets_more(name, config.num_hidden_layers)
    if is_head or has_more:
        wanted = "Q6_K"
    elif name.endswith("v_proj.weight") and wanted == "Q4_K" and config.num_hidden_layers == _LAYERS_OF_70B:
        wanted = "Q5_K" if config.num_key_value_heads < config.num_attention_heads else wanted
    return wanted if shape[-1] % 256 == 0 else _WITHOUT_256[wanted]


def _gets_more(name: str, num_layers: int) -> bool:
    layer, eighth = int(name.split(".")[2]), num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


# ---- blocks ----------------------------------------------------------------------------------------------------------


def to_q4_k(blocks: Tensor) -> Tensor:
    """(N, 256) -> uint8 (N, 144)."""
    head, numbers = _scaled_and_shifted(blocks, 15, -1.0, 20)
    return torch.cat((head, _nibbles(numbers)), 1)


def to_q5_k(blocks: Tensor) -> Tensor:
    """(N, 256) -> uint8 (N, 176)."""
    head, numbers = _scaled_and_shifted(blocks, 31, -0.5, 15)
    fifth = ((numbers >> 4) << torch.arange(8, dtype=torch.uint8)[:, None]).sum(1, dtype=torch.uint8)
    return torch.cat((head, fifth, _nibbles(numbers & 15)), 1)


def to_q6_k(blocks: Tensor) -> Tensor:
    """(N, 256) -> uint8 (N, 210)."""
    groups = blocks.reshape(-1, 16, 16)
    scales = _scales(groups.reshape(-1, 16)).view(-1, 16)
    largest = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    inverse = torch.where(largest.abs() < _LEAST_SIZE, 0.0, -128 / largest)
    whole = _halves(_inverse(inverse))
    steps = (inverse * scales).round().clamp_max(127)
    size = (whole.float() * steps)[..., None]
    numbers = (torch.where(size == 0, 0.0, groups / size).round().clamp(-32, 31) + 32).to(torch.uint8)
    numbers[(inverse == 0).flatten()] = 0
    halves = numbers.reshape(-1, 2, 4, 32)
    low = (halves[:, :, :2] & 15 | (halves[:, :, 2:] & 15) << 4).flatten(1)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (halves >> 4 << shifts).sum(2, dtype=torch.uint8).flatten(1)
    return torch.cat((low, high, steps.to(torch.int8).view(torch.uint8), whole.view(torch.uint8)), 1)


def _scaled_and_shifted(blocks: Tensor, most: int, first: float, num_steps: int) -> tuple[Tensor, Tensor]:
    """Eight groups of 32: the bytes of scales and least values, and the numbers uint8 (N, 8, 32)."""
    groups = blocks.reshape(-1, 32)
    weights = groups.square().mean(1, keepdim=True).sqrt() + groups.abs()
    scales, least = (found.view(-1, 8) for found in _best_fit(groups, weights, most, first, num_steps))
    scale, least_scale = scales.amax(1, keepdim=True), least.amax(1, keepdim=True)
    scales = (scales * _quotient(63, scale)).round().clamp(0, 63)
    least = (least * _quotient(63, least_scale)).round().clamp(0, 63)
    scale, least_scale = _halves(scale / 63), _halves(least_scale / 63)
    size = (scale.float() * scales)[..., None]
    shifted = blocks.reshape(-1, 8, 32) + (least_scale.float() * least)[..., None]
    numbers = torch.where(size == 0, 0.0, shifted / size).round().clamp(0, most).to(torch.uint8)
    head = (
        scale.view(torch.uint8),
        least_scale.view(torch.uint8),
        _packed(scales.to(torch.uint8), least.to(torch.uint8)),
    )
    return torch.cat(head, 1), numbers


def _best_fit(x: Tensor, weights: Tensor, most: int, first: float, num_steps: int) -> tuple[Tensor, Tensor]:
    """Scale and least value, negated, of each row, so that scale x number - least is near: (N, K) -> two (N, 1).

    As in ggml the next rounding is tried from the best least value so far, not from the row's own.
    """
    low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True)
    sum_w, sum_x = weights.sum(1, keepdim=True), (weights * x).sum(1, keepdim=True)
    inverse = _quotient(most, high - low)
    best_scale = _inverse(inverse)
    numbers = (inverse * (x - low)).round().clamp(0, most)
    best_error = (weights * (best_scale * numbers + low - x).square()).sum(1, keepdim=True)
    for step in range(num_steps + 1):
        numbers = (_quotient(first + 0.1 * step + most, high - low) * (x - low)).round().clamp(0, most)
        weighted = weights * numbers
        sum_n, sum_nn = weighted.sum(1, keepdim=True), (weighted * numbers).sum(1, keepdim=True)
        sum_nx = (weighted * x).sum(1, keepdim=True)
        determinant = sum_w * sum_nn - sum_n * sum_n
        shift = (sum_nn * sum_x - sum_n * sum_nx) / determinant
        scale = torch.where(shift > 0, sum_nx / sum_nn, (sum_w * sum_nx - sum_x * sum_n) / determinant)
        shift = shift.clamp_max(0)
        error = (weights * (scale * numbers + shift - x).square()).sum(1, keepdim=True)
        better = (determinant > 0) & (error < best_error)
        best_scale, low = torch.where(better, scale, best_scale), torch.where(better, shift, low)
        best_error = torch.where(better, error, best_error)
    return best_scale, -low


def _scales(x: Tensor) -> Tensor:
    """The scale of each row, of either sign, so that scale x number (-32 to 31) is near: (N, 16) -> (N, 1)."""
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    largest, weights = torch.where(largest.abs() < _LEAST_SIZE, 0.0, largest), x.square()
    best_scale = best = torch.zeros_like(largest)
    for step in (0, *range(-9, 0), *range(1, 10)):
        numbers = (_quotient(-(32 + 0.1 * step), largest) * x).round().clamp(-32, 31)
        sum_nx = (weights * x * numbers).sum(1, keepdim=True)
        sum_nn = (weights * numbers * numbers).sum(1, keepdim=True)
        better = (sum_nn > 0) & (sum_nx * sum_nx > best * sum_nn)
        best_scale = torch.where(better, sum_nx / sum_nn, best_scale)
        best = torch.where(better, best_scale * sum_nx, best)
    return best_scale


def _packed(scales: Tensor, least: Tensor) -> Tensor:
    """Eight scales and eight least values of 6 bits in 12 bytes."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = least[:, :4] | least[:, 4:] >> 4 << 6
    return torch.cat((first, second, scales[:, 4:] & 15 | (least[:, 4:] & 15) << 4), 1)


def _nibbles(numbers: Tensor) -> Tensor:
    """(N, 8, 32) numbers of 4 bits -> (N, 128): two groups share 32 bytes."""
    return (numbers[:, 0::2] | numbers[:, 1::2] << 4).flatten(1)


def _halves(scale: Tensor) -> Tensor:
    return scale.to(torch.float16)


def _inverse(scale: Tensor) -> Tensor:
    return _quotient(1, scale)


def _quotient(number: float, scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, number / scale)
