"""Tensor parallelism for the engine, with the trainer's rules for splitting each weight.

Every process runs the same engine on the same requests in the same order (`torchrun --nproc-per-node 2 ...`). Each
holds its heads with their KV cache, its feed-forward channels and its part of the vocabulary. The outputs of attention
and feed-forward are summed over the processes and the logits gathered, so that all draw the same tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from herd.errors import ConfigError
from herd.model.config import ModelConfig
from herd.model.llama import LlamaForCausalLM
from herd.parallel.tensor import ROW, SplitHead, split_dimension


def split_for_inference(model: LlamaForCausalLM, group: dist.ProcessGroup) -> ModelConfig:
    """Keep only this process's part of a model, in place; returns the part's configuration, for its cache.

    Raises:
        ConfigError: the model's shape is not divisible by the number of processes, or its weights are quantized.
    """
    config, size = model.config, group.size()
    counts = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    uneven = [f"{name} {count}" for name, count in counts.items() if count % size]
    if uneven:
        raise ConfigError(f"{', '.join(uneven)} cannot be split evenly over {size} processes")
    whole = model.lm_head.weight
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            _narrow(module, split_dimension(f"{name}.weight"), group)
        elif name.endswith("_proj"):
            raise ConfigError(f"{name} is quantized, and quantized weights cannot be split over processes")
    embedding = _SplitEmbedding(_piece(model.model.embed_tokens.weight, 0, group), group)
    model.model.embed_tokens = embedding  # type: ignore[assignment]
    model.lm_head = SplitHead(config, _piece(whole, 0, group), group)
    return replace(
        config,
        head_dim=config.head_dim,
        num_attention_heads=config.num_attention_heads // size,
        num_key_value_heads=config.num_key_value_heads // size,
    )


def agree(value: int, group: dist.ProcessGroup) -> int:
    """The smallest of all processes' values."""
    smallest = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(smallest, dist.ReduceOp.MIN, group=group)
    return int(smallest)


def _narrow(linear: nn.Linear, dim: int | None, group: dist.ProcessGroup) -> None:
    if dim is None:
        return
    linear.weight = _piece(linear.weight, dim, group)
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None and dim != ROW:
        linear.bias = _piece(linear.bias, 0, group)
    elif group.rank() > 0:
        linear.register_parameter("bias", None)  # the sum must contain it once
    if dim == ROW:
        linear.register_forward_hook(lambda _, args, out: _summed(out, group))


def _piece(weight: Tensor, dim: int, group: dist.ProcessGroup) -> nn.Parameter:
    piece = weight.detach().chunk(group.size(), dim)[group.rank()].clone()
    return nn.Parameter(piece, requires_grad=False)


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    dist.all_reduce(x, group=group)
    return x


class _SplitEmbedding(nn.Module):
    """This process's rows of the embedding: tokens (B, T) -> (B, T, D), the same on every process."""

    def __init__(self, weight: nn.Parameter, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self._group = weight, group

    def forward(self, tokens: Tensor) -> Tensor:
        here = tokens - self._group.rank() * len(self.weight)
        elsewhere = (here < 0) | (here >= len(self.weight))
        rows = F.embedding(here.masked_fill(elsewhere, 0), self.weight)
        return _summed(rows.masked_fill(elsewhere[..., None], 0), self._group)
