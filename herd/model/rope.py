"""Rotary position embeddings in Hugging Face's layout: channel i turns together with channel i + C/2."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from herd.model.config import ModelConfig, RopeScaling


@functools.lru_cache(maxsize=16)
def inverse_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position of each channel pair, (C/2,) float32; computed on the CPU, whatever the device."""
    if torch.device(device).type != "cpu":
        return inverse_frequencies(config).to(device)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    return frequencies if config.rope_scaling is None else scale_frequencies(frequencies, config.rope_scaling)


def scale_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow the frequencies whose wavelength is long beside the original context; blend in between.

    Source: Meta's llama-models, `apply_scaling` (Llama 3.1).
    """
    wavelength = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelength > original / low, frequencies / scaling.factor, blended)
    return torch.where(wavelength < original / high, frequencies, scaled)


def rotary_table(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines at each position, as `apply_rotary` takes them: positions (B, T) -> two (B, T, 1, C)."""
    angles = positions[..., None, None].float() * inverse_frequencies(config, positions.device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder a query or key projection from channel pairs (2i, 2i + 1) to (i, i + C/2): (H x C, D) or (H x C,).

    Meta's files and llama.cpp's turn adjacent channels as a pair, Hugging Face's channels half a head apart.
    """
    return weight.reshape(num_heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def halves_to_interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `interleaved_to_halves`."""
    return weight.reshape(num_heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
