"""Floating-point operations of training."""

from __future__ import annotations

from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig
from herd.types import IGNORE, Batch


def matmul_parameters(config: ModelConfig) -> int:
    """Weights in matmuls: all except the embedding table and the norms; the head included."""
    c = config
    attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    head = c.num_labels if c.architecture == SEQUENCE_CLASSIFICATION else c.vocab_size
    return c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size) + head * c.hidden_size


def flops_per_token(config: ModelConfig, context_tokens: int) -> int:
    """Floating-point operations to train on one token (forward and backward) in rows of `context_tokens`.

    Six per weight of a matmul, plus attention, of which only the causal half counts: a forward pass takes
    2 x 2 x (context / 2) x H x C per layer and token, and the backward pass twice that.
    """
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context_tokens
    return 6 * matmul_parameters(config) + attention


def batch_flops(config: ModelConfig, batch: Batch, *, frozen: bool = False) -> float:
    """Floating-point operations to train on a micro-batch (forward and backward), for MFU.

    All tokens pass through the layers, padding included; logits are computed only at labels, and attention only within
    documents. `frozen` weights (under adapters) need no gradient: 4 operations for each, not 6.
    """
    of_weight = 4 if frozen else 6
    head = 0 if config.architecture == SEQUENCE_CLASSIFICATION else config.vocab_size * config.hidden_size
    layers = matmul_parameters(config) - head
    labels = int((batch.labels != IGNORE).sum())
    seen = int(((batch.positions + 1) * (batch.document_ids >= 0)).sum())  # query-key pairs
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seen
    return of_weight * (layers * batch.tokens.numel() + head * labels) + attention
