"""Rotary position embeddings (RoPE) in Hugging Face's layout: channels i and i + C/2 are a pair."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from herd.model.config import ModelConfig
from herd.model.scaling import DynamicScaling, LinearScaling, LongScaling, RopeScaling, YarnScaling, magnitude


@functools.lru_cache(maxsize=64)
def inverse_frequencies(config: ModelConfig, device: torch.device | str = "cpu", length: int = 1) -> Tensor:
    """Radians per position of each channel pair, (C/2,) float32; always computed on the CPU.

    `length` is the text's length in tokens, which matters for two kinds of scaling (dynamic and longrope).
    """
    if torch.device(device).type != "cpu":
        return inverse_frequencies(config, length=length).to(device)
    scaling = config.rope_scaling
    theta = _theta_at(config, length) if isinstance(scaling, DynamicScaling) else config.rope_theta
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    frequencies = 1.0 / (theta**exponents)
    if isinstance(scaling, RopeScaling):
        return scale_frequencies(frequencies, scaling)
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, YarnScaling):
        return _blended(frequencies, scaling, config)
    if isinstance(scaling, LongScaling):
        divisors = scaling.long_factor if length > scaling.original_max_position_embeddings else scaling.short_factor
        return 1.0 / (torch.tensor(divisors, device="cpu") * theta**exponents)
    return frequencies


def scale_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide the frequencies whose wavelength is long relative to the original context; blend in between.

    Source: Meta's llama-models, `apply_scaling` (Llama 3.1).
    """
    wavelength = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelength > original / low, frequencies / scaling.factor, blended)
    return torch.where(wavelength < original / high, frequencies, scaled)


def _theta_at(config: ModelConfig, length: int) -> float:
    """Theta for a text of `length`, such that the slowest channel's angle stays within that of the original context."""
    assert isinstance(config.rope_scaling, DynamicScaling)
    factor, context, channels = config.rope_scaling.factor, config.max_position_embeddings, config.head_dim
    if length <= context or channels <= 2:
        return config.rope_theta
    return config.rope_theta * (factor * length / context - (factor - 1)) ** (channels / (channels - 2))


def _blended(frequencies: Tensor, scaling: YarnScaling, config: ModelConfig) -> Tensor:
    """YaRN: a linear ramp over the channels from unchanged to divided frequencies."""
    channels, original = config.head_dim, scaling.original_max_position_embeddings

    def channel(turns: float) -> float:
        """The channel that makes `turns` rotations in the original context."""
        return channels * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    steps = torch.arange(channels // 2, dtype=torch.float32, device="cpu") - low
    kept = 1 - (steps / (high - low or 0.001)).clamp(0, 1)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept


def fixed_rope(config: ModelConfig, context: int) -> ModelConfig:
    """The configuration with frequencies fixed to those of texts of `context` tokens.

    For a KV cache, whose keys are rotated once and used for longer texts later.
    """
    scaling = config.rope_scaling
    if isinstance(scaling, DynamicScaling):
        return replace(config, rope_theta=_theta_at(config, context), rope_scaling=None)
    if isinstance(scaling, LongScaling):
        is_long = context > scaling.original_max_position_embeddings
        divisors = scaling.long_factor if is_long else scaling.short_factor
        return replace(config, rope_scaling=replace(scaling, short_factor=divisors, long_factor=divisors))
    return config


def rotary_table(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines at each position, as `apply_rotary` takes them: positions (B, T) -> two (B, T, 1, C)."""
    angles = positions[..., None, None].float() * _frequencies(config, positions)
    scale = magnitude(config.rope_scaling, config.max_position_embeddings)
    cos, sin = angles.cos(), angles.sin()
    if scale != 1:
        cos, sin = cos * scale, sin * scale
    cos, sin = cos.to(dtype), sin.to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def _frequencies(config: ModelConfig, positions: Tensor) -> Tensor:
    """(C/2,), or (B, T, 1, C/2) if they depend on each text's length."""
    scaling = config.rope_scaling
    if not isinstance(scaling, DynamicScaling | LongScaling) or fixed_rope(config, 1) == fixed_rope(config, 2**30):
        return inverse_frequencies(config, positions.device)
    lengths, places = torch.unique(_lengths(positions), return_inverse=True)
    table = torch.stack([inverse_frequencies(config, positions.device, length) for length in lengths.tolist()])
    return table[places][..., None, :]


def _lengths(positions: Tensor) -> Tensor:
    """The length of the text that each position belongs to; a text is a run of consecutive positions."""
    last = torch.ones_like(positions, dtype=torch.bool)
    last[..., :-1] = positions[..., 1:] != positions[..., :-1] + 1
    places = torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
    ends = places.masked_fill(~last, positions.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return positions.gather(-1, ends) + 1


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder a query or key projection from channel pairs (2i, 2i + 1) to (i, i + C/2): (H x C, D) or (H x C,).

    Meta's and llama.cpp's files rotate adjacent channels, Hugging Face's rotate channels half a head apart.
    """
    return weight.reshape(num_heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def halves_to_interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `interleaved_to_halves`."""
    return weight.reshape(num_heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
