"""A reward model: a language model's layers with a score head."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig
from herd.model.llama import Attend, Llama, LlamaForSequenceClassification, empty_model


def as_reward_model(model: Llama, seed: int, attend: Attend | None = None) -> LlamaForSequenceClassification:
    """A reward model with a language model's layers (shared, not copied) and a newly initialized score head."""
    config = reward_config(model.config)
    reward = empty_model(config, attend)
    assert isinstance(reward, LlamaForSequenceClassification)
    reward.model = model.model
    weight = model.model.norm.weight
    reward.score.weight = torch.nn.Parameter(fresh_score(config, seed).to(weight.device, weight.dtype))
    return reward


def reward_config(config: ModelConfig) -> ModelConfig:
    """The configuration of a reward model made from a language model."""
    return replace(config, architecture=SEQUENCE_CLASSIFICATION, num_labels=1)


def fresh_score(config: ModelConfig, seed: int) -> Tensor:
    """The initial score head of a new reward model: (labels, D) float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(config.num_labels, config.hidden_size).normal_(
        0.0, config.initializer_range, generator=generator
    )
