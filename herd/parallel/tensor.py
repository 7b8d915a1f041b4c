"""Tensor and sequence parallelism: which weights are split, and the collectives around them.

Between the layers each process has a part of the sequence. Before attention and feed-forward the parts are gathered;
each process computes its heads and channels; the partial sums are reduced and scattered again. Modules are those of
`herd.model.llama`, only narrower.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from herd.model.config import ModelConfig
from herd.model.llama import Head, LlamaForCausalLM
from herd.parallel.loss import split_log_probs
from herd.types import IGNORE

# PyTorch 2.11 has only the old names, which later versions deprecate
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

COLUMN, ROW = 0, 1
SPLIT = {
    "embed_tokens": COLUMN,
    "self_attn.q_proj": COLUMN,
    "self_attn.k_proj": COLUMN,
    "self_attn.v_proj": COLUMN,
    "self_attn.o_proj": ROW,
    "mlp.gate_proj": COLUMN,
    "mlp.up_proj": COLUMN,
    "mlp.down_proj": ROW,
    "lm_head": COLUMN,
}
"""Module -> the dimension of its weight that is split over tensor-parallel processes. Norms are not split."""


def split_dimension(name: str) -> int | None:
    """The dimension in which a parameter is split, by its name in the whole model; None if it is not."""
    module = name.removesuffix(".weight")
    return next((dim for ending, dim in SPLIT.items() if module.endswith(ending)), None)


def gather(x: Tensor, group: dist.ProcessGroup, dim: int = 1) -> Tensor:
    """All-gather along `dim`; the backward pass is a reduce-scatter of gradients."""
    return _Gather.apply(x, group, dim)


def scatter_sum(x: Tensor, group: dist.ProcessGroup, dim: int = 1) -> Tensor:
    """Reduce-scatter (sum) along `dim`; the backward pass is an all-gather."""
    return _ScatterSum.apply(x, group, dim)


def split_model(model: LlamaForCausalLM, config: ModelConfig, group: dist.ProcessGroup) -> None:
    """Turn a narrow model (`part_config` of `config`) into one process's part, in place."""
    for block in model.model.blocks:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.register_forward_hook(lambda _, args, out: gather(out, group))
        for last in (block.self_attn.o_proj, block.mlp.down_proj):
            last.register_forward_hook(lambda _, args, out: scatter_sum(out, group))
    if model.model.embed_tokens is not None:
        model.model.embed_tokens = SplitEmbedding(model.model.embed_tokens.weight, group)  # type: ignore[assignment]
    if model.lm_head is not None:
        model.lm_head = SplitHead(config, model.lm_head.weight, group)
        model.model.norm.register_forward_hook(lambda _, args, out: gather(out, group))


class SplitEmbedding(nn.Module):
    """This process's rows of the embedding. Tokens (B, T) -> this process's part of the sequence (B, T / size, D)."""

    def __init__(self, weight: Tensor, group: dist.ProcessGroup):
        super().__init__()
        self.weight, self.group = cast("nn.Parameter", weight), group

    def forward(self, tokens: Tensor) -> Tensor:
        here = tokens - self.group.rank() * len(self.weight)
        elsewhere = (here < 0) | (here >= len(self.weight))
        rows = F.embedding(here.masked_fill(elsewhere, 0), self.weight)
        return scatter_sum(rows.masked_fill(elsewhere[..., None], 0), self.group)


class SplitHead(Head):
    """This process's rows of the output projection. Logits are not gathered for losses, only their sums."""

    def __init__(self, config: ModelConfig, weight: Tensor, group: dist.ProcessGroup):
        nn.Module.__init__(self)
        self.in_features, self.out_features = config.hidden_size, len(weight)
        self.weight, self.group = cast("nn.Parameter", weight), group
        self.register_parameter("bias", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), gathered. All processes use them in the same way, so backward sums nothing."""
        return _GatherSame.apply(F.linear(hidden, self.weight), self.group)

    def cross_entropy_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """As `Head.cross_entropy_sum`; the gradient of `hidden` is this process's share of it."""
        kept = (labels.reshape(-1) != IGNORE).nonzero().squeeze(1)
        return -self.log_probs(hidden.flatten(0, -2)[kept], labels.reshape(-1)[kept]).sum()

    def log_probs(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """As `Head.log_probs`."""
        flat = split_log_probs(hidden.reshape(-1, hidden.shape[-1]), self.weight, ids.reshape(-1), self.group)
        return flat.view(ids.shape)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _all_gather(x, group, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return _reduce_scatter(grad, ctx.group, ctx.dim), None, None


class _GatherSame(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x, group, x.ndim - 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return grad.chunk(ctx.group.size(), -1)[ctx.group.rank()].contiguous(), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _reduce_scatter(x, group, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return _all_gather(grad, ctx.group, ctx.dim), None, None


def _all_gather(x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    front = x.transpose(0, dim).contiguous()
    out = front.new_empty(len(front) * group.size(), *front.shape[1:])
    _all_gather_single(out, front, group=group)
    return out.transpose(0, dim).contiguous()


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    front = x.transpose(0, dim).contiguous()
    out = front.new_empty(len(front) // group.size(), *front.shape[1:])
    _reduce_scatter_single(out, front, group=group)
    return out.transpose(0, dim).contiguous()
