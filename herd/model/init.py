"""Initialization of new weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from herd.model.config import ModelConfig


@torch.no_grad()
def initialize(model: nn.Module, seed: int, *, embedding_range: float | None = None) -> None:
    """Initialize all weights of a model in place; the same seed gives the same weights.

    Matrices are normal with standard deviation `initializer_range`; the two that write into the residual stream are
    smaller by sqrt(2 x layers), so that its variance does not grow with depth. Embeddings are normal with
    `embedding_range` if given. Norm weights are one, biases zero.

    Source: the Llama 3 paper does not say. Normal(0.02): Hugging Face's `initializer_range`; the scaling: GPT-2
    (Radford et al. 2019, section 2.3).
    """
    for (_, parameter), (_, drawn) in zip(
        model.named_parameters(), fresh_weights(model, seed, embedding_range=embedding_range)
    ):
        parameter.copy_(drawn)


def fresh_weights(
    model: nn.Module, seed: int, *, embedding_range: float | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that `initialize` sets, one float32 tensor at a time; of `model` only names and shapes are used."""
    config = cast(ModelConfig, model.config)
    generator = torch.Generator().manual_seed(seed)
    residual = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            yield name, torch.full(parameter.shape, 0.0 if name.endswith(".bias") else 1.0)
            continue
        std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else config.initializer_range
        if name.endswith("embed_tokens.weight"):
            std = embedding_range or std
        yield name, torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
