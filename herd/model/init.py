"""Fresh weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from herd.model.config import ModelConfig


@torch.no_grad()
def initialize(model: nn.Module, seed: int, *, embedding_range: float | None = None) -> None:
    """Draw every weight anew; the same seed gives the same weights, whatever was drawn before.

    Matrices are normal with `initializer_range`; the two that write into the residual stream are smaller by
    sqrt(2 x layers), so that its variance does not grow with depth. Embeddings are normal with `embedding_range` where
    that is given. Norm weights are one.

    Source: the Llama 3 paper does not say. Normal(0.02): Hugging Face's `initializer_range`; the scaling: GPT-2
    (Radford et al. 2019, section 2.3).
    """
    config: ModelConfig = model.config
    generator = torch.Generator().manual_seed(seed)
    residual = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else config.initializer_range
        if name.endswith("embed_tokens.weight"):
            std = embedding_range or std
        drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        parameter.copy_(drawn)
