"""Comparing two checkpoints by their logits on a few tokens, with one layer in memory at a time.

This forward pass is independent of `llama.py`: it uses a file's rows in their stored order, and rotates adjacent
channels if the format does (Meta, llama.cpp), so that a wrong permutation is detected. All is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.stored import StoredWeights, spans
from herd.model.config import CAUSAL_LM
from herd.model.rope import inverse_frequencies
from herd.model.scaling import magnitude

NUM_TOKENS = 12
"""Tokens in the compared sequence."""

_CACHED_WEIGHTS = 1_000_000  # converted to float32 at a time, to stay in the processor's cache


@dataclass(frozen=True)
class Difference:
    """How much two models' predictions differ."""

    largest: float
    """The largest difference of a logit."""
    spread: float
    """The standard deviation of the first model's logits, as a scale for the largest difference."""
    divergence: float
    """KL divergence of the second from the first, mean over tokens, in nats."""
    same_choice: float
    """Share of the tokens after which both predict the same most likely token."""

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.largest:.2g} (standard deviation of logits {self.spread:.2g}), "
            f"KL divergence {self.divergence:.2g} nats, same top token {self.same_choice:.0%}"
        )


def difference(first: StoredWeights, second: StoredWeights, tell: Callable[[str], None] = lambda _: None) -> Difference:
    """Compare the predictions of two checkpoints, in any formats, on one sequence of tokens.

    `tell` is called with the layer being computed.

    Raises:
        CheckpointError: the two have different vocabulary sizes, or one is not a language model.
    """
    tokens = sample_tokens(first, second)
    p = layerwise_logits(first, tokens, lambda layer: tell(f"{first.path.name}: {layer}"))
    q = layerwise_logits(second, tokens, lambda layer: tell(f"{second.path.name}: {layer}"))
    return difference_of(p, q)


def difference_of(p: Tensor, q: Tensor) -> Difference:
    """Compare two tables of logits: (T, V), (T, V)."""
    if not torch.isfinite(p).all() or not torch.isfinite(q).all():
        return Difference(math.inf, math.nan, math.inf, 0.0)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return Difference(
        largest=float((p - q).abs().max()),
        spread=float(p.std()),
        divergence=max(0.0, float(divergence)),
        same_choice=float((p.argmax(-1) == q.argmax(-1)).float().mean()),
    )


def sample_tokens(first: StoredWeights, second: StoredWeights) -> Tensor:
    """Fixed random ids from the vocabulary of both models: (T,)."""
    for weights in (first, second):
        if weights.config.architecture != CAUSAL_LM:
            raise CheckpointError(f"{weights.path} is not a language model and has no logits to compare.")
    a, b = first.config, second.config
    if a.vocab_size != b.vocab_size:
        raise CheckpointError(
            f"{first.path} has a vocabulary of {a.vocab_size:,}, {second.path} one of {b.vocab_size:,}."
        )
    return torch.randint(0, a.vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def layerwise_logits(weights: StoredWeights, tokens: Tensor, tell: Callable[[str], None] = lambda _: None) -> Tensor:
    """Logits of one document in float32, computed layer by layer from the files: (T,) -> (T, V)."""
    config = weights.config
    x = torch.cat([weights.tensors["model.embed_tokens.weight"].rows(i, i + 1) for i in tokens.tolist()]).float()
    angles = torch.arange(len(tokens))[:, None] * inverse_frequencies(config, length=len(tokens))
    scale = magnitude(config.rope_scaling, config.max_position_embeddings)
    turn = torch.polar(torch.full_like(angles, scale), angles)[:, None]  # (T, 1, C/2)
    for layer in range(config.num_hidden_layers):
        tell(f"layer {layer + 1} of {config.num_hidden_layers}")
        prefix = f"model.layers.{layer}."
        x = x + _attention(weights, prefix, _norm(weights, f"{prefix}input_layernorm", x), turn)
        x = x + _feed_forward(weights, prefix, _norm(weights, f"{prefix}post_attention_layernorm", x))
    tell("the head")
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return _linear(weights, head, _norm(weights, "model.norm", x))


def _attention(weights: StoredWeights, prefix: str, x: Tensor, turn: Tensor) -> Tensor:
    config = weights.config
    shape = (len(x), -1, config.head_dim)
    q = _turned(_linear(weights, f"{prefix}self_attn.q_proj", x).view(shape), turn, weights.adjacent)
    k = _turned(_linear(weights, f"{prefix}self_attn.k_proj", x).view(shape), turn, weights.adjacent)
    v = _linear(weights, f"{prefix}self_attn.v_proj", x).view(shape)
    group = config.num_attention_heads // config.num_key_value_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(config.head_dim)
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = torch.einsum("hqk,khc->qhc", scores.masked_fill(later, -math.inf).softmax(-1), v)
    return _linear(weights, f"{prefix}self_attn.o_proj", mixed.flatten(1))


def _turned(x: Tensor, turn: Tensor, adjacent: bool) -> Tensor:
    """RoPE with each pair of channels as a complex number: (T, H, C)."""
    pairs = x.unflatten(-1, (-1, 2)) if adjacent else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return (turned if adjacent else turned.transpose(-1, -2)).flatten(-2)


def _feed_forward(weights: StoredWeights, prefix: str, x: Tensor) -> Tensor:
    gate = F.silu(_linear(weights, f"{prefix}mlp.gate_proj", x))
    return _linear(weights, f"{prefix}mlp.down_proj", gate * _linear(weights, f"{prefix}mlp.up_proj", x))


def _linear(weights: StoredWeights, name: str, x: Tensor) -> Tensor:
    """x W^T + b, a few rows of W at a time: (T, K) -> (T, N)."""
    weight, bias = weights.tensors[f"{name}.weight"], weights.tensors.get(f"{name}.bias")
    out = torch.empty(len(x), weight.shape[0])  # filled in place, because many small parts would fragment the heap
    step = max(1, _CACHED_WEIGHTS // weight.shape[1])
    for begin, end in spans(weight.shape, weights.config.head_dim):
        for rows in weight.rows(begin, end).split(step):
            out[:, begin : begin + len(rows)] = x @ rows.float().T
            begin += len(rows)
    return out if bias is None else out + bias.rows(0, bias.shape[0]).float()


def _norm(weights: StoredWeights, name: str, x: Tensor) -> Tensor:
    weight = weights.tensors[f"{name}.weight"]
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + weights.config.rms_norm_eps)
    return x * scale * weight.rows(0, weight.shape[0]).float()
