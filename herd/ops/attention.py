"""Causal attention inside documents, over rows in which several documents are packed.

`packed_attention` is the fast path, `reference_attention` its twin; they share no code. PyTorch has no attention for
the CPU that knows documents and is quick backwards, so the CPU path is our own: blocks of queries against the keys
they can see, sized so that the scores of a block stay in the processor's second-level cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 2**20
"""Scores of one block; they are passed over several times, and fit a core's second-level cache."""
KEPT_BYTES = 2**25
"""Attention weights that a layer may keep for its backward pass; where they take more they are computed again."""
_MIN_QUERIES, _MAX_QUERIES = 64, 256


@dataclass(frozen=True)
class AttentionContext:
    """What attention must know of a batch beside its queries, keys and values."""

    document_ids: Tensor | None = None
    """(B, T) int32: a token sees its own document, which is one run of equal ids; -1 is padding. None: a row is one."""

    @functools.cached_property
    def document_starts(self) -> Tensor:
        """Where the document of each token begins in its row, (B, T) int64, on the CPU; T for padding."""
        ids = self.document_ids.cpu()
        place = torch.arange(ids.shape[1]).expand_as(ids)
        begins = torch.ones_like(ids, dtype=torch.bool)
        begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
        return torch.where(begins, place, 0).cummax(1).values.masked_fill(ids < 0, ids.shape[1])

    @functools.cached_property
    def _plans(self) -> dict:
        """Blocks by block size and dtype: worked out by the first layer, used by all."""
        return {}


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """Each query sees the keys of its own document up to its own place; the output at padding is unspecified.

    q is (B, T, H, C), k and v are (B, T, K, C) with K a divisor of H; the result is (B, T, H, C). Training needs no
    `cache`; the argument is part of the seam that every `attend` function fills.
    """
    if q.device.type == "cpu":
        return _BlockAttention.apply(q, k, v, context)
    return _device_attention(q, k, v, context)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """The twin of `packed_attention`: every score is computed, then masked."""
    row_tokens, num_heads = q.shape[1], q.shape[2]
    place = torch.arange(row_tokens, device=q.device)
    visible = (place[:, None] >= place[None, :]).expand(q.shape[0], 1, -1, -1)
    if context is not None and context.document_ids is not None:
        ids = context.document_ids
        visible = visible & (ids[:, None, :, None] == ids[:, None, None, :])
    groups = num_heads // k.shape[2]
    keys = k.repeat_interleave(groups, dim=2).transpose(1, 2)
    values = v.repeat_interleave(groups, dim=2).transpose(1, 2)
    return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=visible).transpose(1, 2)


class _Block(NamedTuple):
    """Queries first:last of a row against keys start:last; `bias` is added to the scores of the last keys."""

    row: int
    first: int
    last: int
    start: int
    bias: Tensor  # (queries, at most last - start): 0 where a query sees a key, -inf where it does not


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None) -> Tensor:
        blocks, heads = _plan(q, k, context)
        keep = any(ctx.needs_input_grad) and _score_bytes(q, blocks) <= KEPT_BYTES
        kept = []
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        for block, part in _work(blocks, heads, k.shape[2]):
            weights = _weights(_queries(q, block, part, k), _keys(k, block, part), block)
            _put_queries(out, block, part, k, torch.bmm(weights, _keys(v, block, part)))
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.context = context
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor):
        q, k, v, *kept = ctx.saved_tensors
        blocks, heads = _plan(q, k, ctx.context)
        grad_q = torch.zeros_like(q, memory_format=torch.contiguous_format)
        grad_k, grad_v = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        for index, (block, part) in enumerate(_work(blocks, heads, k.shape[2])):
            queries, keys = _queries(q, block, part, k), _keys(k, block, part)
            weights = kept[index] if kept else _weights(queries, keys, block)
            grad = _queries(grad_out, block, part, k)
            _keys(grad_v, block, part).add_(torch.bmm(weights.transpose(1, 2), grad))
            grad_weights = torch.bmm(grad, _keys(v, block, part).transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            scale = q.shape[-1] ** -0.5
            _put_queries(grad_q, block, part, k, torch.bmm(grad_scores, keys).mul_(scale))
            _keys(grad_k, block, part).add_(torch.bmm(grad_scores.transpose(1, 2), queries), alpha=scale)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _weights(queries: Tensor, keys: Tensor, block: _Block) -> Tensor:
    """Softmax of the scores of a block: (k, g x queries, C) and (k, keys, C) -> (k, g x queries, keys)."""
    scale = queries.shape[-1] ** -0.5
    scores = torch.baddbmm(queries.new_zeros(()), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    rows, columns = block.bias.shape
    scores.unflatten(1, (-1, rows))[..., -columns:].add_(block.bias)
    return torch.softmax(scores, -1)


def _queries(q: Tensor, block: _Block, part: slice, k: Tensor) -> Tensor:
    """A block's rows of (B, T, H, C), heads that share a key-value head side by side: (k, g x queries, C)."""
    grouped = q[block.row, block.first : block.last].unflatten(1, (k.shape[2], -1))[:, part]  # (queries, k, g, C)
    return grouped.permute(1, 2, 0, 3).flatten(1, 2)


def _put_queries(out: Tensor, block: _Block, part: slice, k: Tensor, values: Tensor) -> None:
    """The way back from `_queries`."""
    grouped = out[block.row, block.first : block.last].unflatten(1, (k.shape[2], -1))[:, part]
    grouped.copy_(values.unflatten(1, (-1, block.last - block.first)).permute(2, 0, 1, 3))


def _keys(k: Tensor, block: _Block, part: slice) -> Tensor:
    """The keys (or values) that a block sees, of some heads: a view (k, keys, C)."""
    return k[block.row, block.start : block.last, part].transpose(0, 1)


def _work(blocks: list[_Block], heads: int, num_heads: int) -> Iterator[tuple[_Block, slice]]:
    """Every block with every group of `heads` key-value heads."""
    for block in blocks:
        for first in range(0, num_heads, heads):
            yield block, slice(first, first + heads)


def _plan(q: Tensor, k: Tensor, context: AttentionContext | None) -> tuple[list[_Block], int]:
    """The blocks of a batch, and how many key-value heads to take at once so that scores stay in cache."""
    rows, tokens, num_heads, _ = q.shape
    line_bytes = tokens * q.element_size()  # scores of one query of one head
    queries = _MAX_QUERIES
    while queries > _MIN_QUERIES and num_heads * queries * line_bytes > BLOCK_BYTES:
        queries //= 2
    groups = num_heads // k.shape[2]
    heads = max(1, min(k.shape[2], BLOCK_BYTES // (groups * queries * line_bytes)))
    if context is None or context.document_ids is None:
        return _blocks_of_rows(rows, tokens, queries, q.dtype), heads
    key = queries, q.dtype
    if key not in context._plans:
        context._plans[key] = _blocks_of_documents(context.document_starts, queries, q.dtype)
    return context._plans[key], heads


@functools.lru_cache(maxsize=8)
def _blocks_of_rows(rows: int, tokens: int, queries: int, dtype: torch.dtype) -> list[_Block]:
    return _blocks_of_documents(torch.zeros(rows, tokens, dtype=torch.int64), queries, dtype)


def _blocks_of_documents(starts: Tensor, queries: int, dtype: torch.dtype) -> list[_Block]:
    """Cut each row into blocks; a block reaches back to where the document of its first query begins."""
    num_rows, tokens = starts.shape
    triangle = torch.full((queries, queries), -torch.inf, dtype=dtype).triu_(1)
    blocks = []
    for first in range(0, tokens, queries):
        last = min(first + queries, tokens)
        for row, (start, end) in enumerate(starts[:, [first, last - 1]].tolist()):
            if start == tokens:  # padding, which fills the end of a row
                continue
            if start == end:
                bias = triangle[: last - first, : last - first]
            else:
                bias = _document_bias(starts[row, first:last], first, start, dtype)
            blocks.append(_Block(row, first, last, start, bias))
    return blocks


def _document_bias(starts: Tensor, first: int, start: int, dtype: torch.dtype) -> Tensor:
    """0 from the start of a query's document to the query itself, -inf elsewhere: (queries, keys)."""
    last = first + len(starts)
    query, key = torch.arange(first, last)[:, None], torch.arange(start, last)[None, :]
    starts = starts.clamp(max=last - 1)[:, None]  # padding sees at least one key, so that no row is all -inf
    visible = (starts <= key) & (key <= query.clamp(min=starts))
    return torch.where(visible, 0.0, -torch.inf).to(dtype)


def _score_bytes(q: Tensor, blocks: list[_Block]) -> int:
    pairs = sum((block.last - block.first) * (block.last - block.start) for block in blocks)
    return pairs * q.shape[2] * q.element_size()


def _device_attention(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None) -> Tensor:
    """PyTorch's own kernels, elsewhere than on the CPU; a mask only where rows hold several documents."""
    several = context is not None and context.document_ids is not None and bool((context.document_starts > 0).any())
    mask = _document_mask(context, q.device) if several else None
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, is_causal=mask is None, enable_gqa=True
    )
    return out.transpose(1, 2)


def _document_mask(context: AttentionContext, device: torch.device) -> Tensor:
    if device not in context._plans:
        ids = context.document_ids.to(device)
        same = ids[:, None, :, None] == ids[:, None, None, :]
        context._plans[device] = same & torch.ones(same.shape[-2:], dtype=torch.bool, device=device).tril()
    return context._plans[device]
