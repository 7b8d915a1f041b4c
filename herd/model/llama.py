"""Llama: one model for training and for decoding, under Hugging Face's names.

A pre-norm decoder with grouped-query attention, RoPE, RMSNorm and SwiGLU. The attention function `attend` is chosen at
construction: over packed rows in training, over a paged KV cache in the engine. It gets `context` (tensors about the
batch) and its layer's entry of `cache`, both opaque to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from herd.model.config import CAUSAL_LM, SEQUENCE_CLASSIFICATION, ModelConfig
from herd.model.rope import rotary_table
from herd.ops.attention import AttentionContext, packed_attention
from herd.ops.cross_entropy import cross_entropy_sum, token_log_probs
from herd.ops.rms_norm import rms_norm
from herd.ops.rope import apply_rotary
from herd.ops.swiglu import swiglu
from herd.types import Batch, Loss

Attend = Callable[[Tensor, Tensor, Tensor, Any, Any], Tensor]
R = TypeVar("R")
Objective = Callable[[Tensor, Any, Batch], Loss]  # of hidden states, a head and a batch


class RMSNorm(nn.Module):
    """Root mean square norm with a learned scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with RoPE."""

    def __init__(self, config: ModelConfig, attend: Attend) -> None:
        super().__init__()
        self.head_dim, self.attend = config.head_dim, attend
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, C), keys and values (B, T, K, C); queries and keys rotated by RoPE."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return apply_rotary(q, *rotary), apply_rotary(k, *rotary), v


class MLP(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, attend: Attend) -> None:
        super().__init__()
        self.self_attn = Attention(config, attend)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], context: Any, cache: Any) -> Tensor:
        q, k, v = self.before_attention(x, rotary)
        return self.after_attention(x, self.self_attn.attend(q, k, v, context, cache))

    def before_attention(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Everything up to queries, keys and values; one function, so that a compiler can fuse it."""
        return self.self_attn.project(self.input_layernorm(x), rotary)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Everything after attention: (B, T, D) and (B, T, H, C) -> (B, T, D)."""
        x = x + self.self_attn.o_proj(attended.flatten(-2))
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Embedding, blocks and final norm: everything except the head."""

    def __init__(self, config: ModelConfig, attend: Attend = packed_attention) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, attend) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)

    @property
    def blocks(self) -> list[Block]:
        """The model's layers, in order (on a mesh, of this pipeline stage)."""
        return cast("list[Block]", list(self.layers))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedding rows: (B, T) -> (B, T, D)."""
        return self.embed_tokens(tokens)

    def forward(self, x: Tensor, positions: Tensor, context: Any = None, cache: Sequence[Any] | None = None) -> Tensor:
        """Hidden states after the final norm: x (B, T, D), positions (B, T) -> (B, T, D).

        `context` and each layer's entry of `cache` are passed on to `attend`.
        """
        rotary = rotary_table(self.config, positions, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotary, context, None if cache is None else cache[index])
        return self.norm(x)


class Head(nn.Linear):
    """From hidden states to logits. Chunking over the vocabulary is done here, so that objectives need not."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(hidden, self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """As `logits`."""
        return self.logits(input)

    def cross_entropy_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Summed negative log-likelihood of the labels that are not IGNORE: (..., D), (...) -> () float32."""
        return cross_entropy_sum(hidden, self.weight, labels)

    def log_probs(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Log-probability of each position's id, or k ids: (..., D), (...) or (..., k) -> the same, float32."""
        return token_log_probs(hidden, self.weight, ids)


class LlamaForCausalLM(nn.Module):
    """A Llama that predicts the next token. `forward(tokens)` gives logits, as in `transformers`."""

    def __init__(self, config: ModelConfig, attend: Attend = packed_attention) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, attend)
        self.lm_head = Head(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share the embedding with the output projection, if the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of one document per row: (B, T) -> (B, T, V)."""
        return self.lm_head.logits(_hidden_of_documents(self.model, tokens))

    def run(self, objective: Callable[[Tensor, Any, Batch], R], batch: Batch) -> R:
        """Call a function, such as an objective, with the hidden states of a packed batch, the head and the batch."""
        return objective(_hidden_of_batch(self.model, batch), self.lm_head, batch)


class LlamaForSequenceClassification(nn.Module):
    """A reward model. `forward(tokens)` gives a score at every position; callers use the last token's."""

    def __init__(self, config: ModelConfig, attend: Attend = packed_attention) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, attend)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of one document per row: (B, T) -> (B, T, num_labels)."""
        return self.score(_hidden_of_documents(self.model, tokens))

    def run(self, objective: Callable[[Tensor, Any, Batch], R], batch: Batch) -> R:
        """As `LlamaForCausalLM.run`; the head is the linear layer `score`."""
        return objective(_hidden_of_batch(self.model, batch), self.score, batch)


Llama = LlamaForCausalLM | LlamaForSequenceClassification

_CLASSES: dict[str, Callable[[ModelConfig, Attend], Llama]] = {
    CAUSAL_LM: LlamaForCausalLM,
    SEQUENCE_CLASSIFICATION: LlamaForSequenceClassification,
}


def empty_model(config: ModelConfig, attend: Attend | None = None, device: str = "meta") -> Llama:
    """A model of the configured class with uninitialized weights, by default without memory (device `meta`)."""
    with torch.device(device), _NoRandomNumbers():
        return _CLASSES[config.architecture](config, attend or packed_attention)


class _NoRandomNumbers(TorchFunctionMode):
    """Skips weight initialization: weights are replaced anyway, and on `meta` it would import PyTorch's compiler."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _DRAWING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


_DRAWING = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


def _hidden_of_documents(model: LlamaModel, tokens: Tensor) -> Tensor:
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(model.embed(tokens), positions)


def _hidden_of_batch(model: LlamaModel, batch: Batch) -> Tensor:
    return model(model.embed(batch.tokens), batch.positions, AttentionContext(batch.document_ids))
