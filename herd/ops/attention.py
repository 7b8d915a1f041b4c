"""Causal attention inside documents, over rows in which several documents are packed.

`packed_attention` is the fast path, `reference_attention` its reference; they share no code. PyTorch has no CPU
attention with document masks and a fast backward pass, so the CPU paths are our own: `native_attention`, a C++ kernel
for bfloat16 if there is a compiler and the processor has the instructions, and otherwise `block_attention`, over blocks
of queries and their visible keys, sized so that the scores of a block stay in the processor's cache.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.kernels.native import library, loaded, pointer
from herd.ops.segments import Segments, find_segments, segment_attention, serve

BLOCK_BYTES = 2**22
"""Scores of one block: they are read several times, so should stay in cache; small blocks make matmuls slow."""
KEPT_BYTES = 2**25
"""Most attention weights that a layer keeps for its backward pass; if there are more, they are recomputed."""
_NATIVE_CHANNELS = 256  # of a head, at most: the kernel's buffers
QUERIES = 128
"""Queries of a block: fewer make matmuls slow, more waste work on masked keys."""


@dataclass(frozen=True)
class AttentionContext:
    """What attention needs to know of a batch besides queries, keys and values."""

    document_ids: Tensor | None = None
    """(B, T) int32: a token attends within its document, a run of equal ids; -1 is padding. None: each row is one."""

    @functools.cached_property
    def document_starts(self) -> Tensor:
        """Where the document of each token begins in its row, (B, T) int64, on the CPU; T for padding."""
        assert self.document_ids is not None
        ids = self.document_ids.cpu()
        place = torch.arange(ids.shape[1]).expand_as(ids)
        begins = torch.ones_like(ids, dtype=torch.bool)
        begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
        return torch.where(begins, place, 0).cummax(1).values.masked_fill(ids < 0, ids.shape[1])

    @functools.cached_property
    def holds_several(self) -> bool:
        """Whether some row holds more than one document, padding included; synchronizes once for all layers."""
        return self.document_ids is not None and bool((self.document_starts > 0).any())

    def segments(self, begin: int, num_queries: int, device: torch.device) -> Segments:
        """The documents' borders, for a GPU's kernel; computed by the first layer, used by all."""
        key = begin, num_queries, device
        if key not in self._plans:
            self._plans[key] = find_segments(self.document_starts, begin, num_queries, device)
        return self._plans[key]

    @functools.cached_property
    def first_keys(self) -> Tensor:
        """`document_starts` as the native kernel reads them, int32."""
        return self.document_starts.int().contiguous()

    @functools.cached_property
    def _plans(self) -> dict:
        """Blocks by block size and dtype: computed by the first layer, used by all."""
        return {}


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """Each query attends to the keys of its document up to its own position; the output at padding is unspecified.

    q is (B, T, H, C), k and v are (B, T, K, C) with K a divisor of H; the result is (B, T, H, C). Training has no
    `cache`; the argument is part of the interface of all `attend` functions.
    """
    if q.device.type != "cpu":
        return _device_attention(q, k, v, context)
    return native_attention(q, k, v, context) if native_serves(q) else block_attention(q, k, v, context)


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """`packed_attention` on the CPU in plain PyTorch, for any dtype and processor."""
    return _BlockAttention.apply(q, k, v, context)


def native_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """`packed_attention` on the CPU by the C++ kernel; only where `native_serves`."""
    if context is None or context.document_ids is None:
        starts = _no_starts(*q.shape[:2])
    else:
        starts = context.first_keys
    return _NativeAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), starts)


def native_serves(q: Tensor) -> bool:
    """Whether the C++ kernel supports these queries: bfloat16, (B, T, H, C) with C a multiple of 16."""
    fits = q.dtype == torch.bfloat16 and q.shape[-1] % 16 == 0 and q.shape[-1] <= _NATIVE_CHANNELS
    return fits and library("native_attention") is not None


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """The reference for `packed_attention`: all scores are computed, then masked."""
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


class _NativeAttention(torch.autograd.Function):
    """Scores are recomputed in the backward pass; only the results and the sums of exponentials are kept."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
        out = torch.empty_like(q)
        sums = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
        tensors = map(pointer, (q, k, v, starts, out, sums))
        loaded("native_attention").attention_forward(*_sizes(q, k), *tensors, torch.get_num_threads())
        ctx.save_for_backward(q, k, v, starts, out, sums)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor):
        saved = q, k, v, *_ = ctx.saved_tensors  # read once: recomputed activations can be unpacked only once
        grads = [torch.empty_like(x) for x in (q, k, v)]
        grad_out = grad_out.contiguous()
        tensors = map(pointer, (*saved, grad_out, *grads))
        loaded("native_attention").attention_backward(*_sizes(q, k), *tensors, torch.get_num_threads())
        return *grads, None


def _sizes(q: Tensor, k: Tensor) -> list[ctypes.c_int64]:
    """B, T, H, K, C."""
    return [ctypes.c_int64(size) for size in (*q.shape[:3], *k.shape[2:])]


@functools.lru_cache(maxsize=8)
def _no_starts(num_rows: int, tokens: int) -> Tensor:
    return torch.zeros(num_rows, tokens, dtype=torch.int32)


class _Block(NamedTuple):
    """Queries first:last of some rows, and the keys start:last that are visible to them."""

    rows: slice
    first: int
    last: int
    start: int
    heads: slice  # of the key-value heads
    bias: Tensor  # (rows or 1, queries, last keys): 0 where a key is visible to a query, else -inf

    def queries(self, q: Tensor) -> Tensor:
        """Of q (B, T, K, G, C): (rows x K, G x queries, C), so that the G heads that share keys are in one matmul."""
        return self._window(q).permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)

    def put_queries(self, q: Tensor, values: Tensor) -> None:
        """The inverse: write (rows x K, G x queries, C) to its place in q (B, T, K, G, C)."""
        window = self._window(q)
        num_rows, queries, heads, groups, channels = window.shape
        window.copy_(values.view(num_rows, heads, groups, queries, channels).permute(0, 3, 1, 2, 4))

    def keys(self, k: Tensor) -> Tensor:
        """Of k (B, T, K, C): (rows x K, keys, C)."""
        return self._keys(k).flatten(0, 1)

    def add_keys(self, k: Tensor, values: Tensor) -> None:
        """The inverse: add (rows x K, keys, C) to its place in k (B, T, K, C)."""
        window = self._keys(k)
        window.add_(values.view(window.shape))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Softmax of the masked scores: (rows x K, G x queries, keys)."""
        scores = _scaled_bmm(queries, keys.transpose(1, 2), queries.shape[-1] ** -0.5)
        by_head = scores.view(self.rows.stop - self.rows.start, -1, self.last - self.first, keys.shape[1])
        by_head[..., -self.bias.shape[-1] :].add_(self.bias[:, None])
        return torch.softmax(scores, -1)

    def _window(self, q: Tensor) -> Tensor:
        return q[self.rows, self.first : self.last, self.heads]

    def _keys(self, k: Tensor) -> Tensor:
        return k[self.rows, self.start : self.last, self.heads].transpose(1, 2)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None) -> Tensor:
        grouped = q.unflatten(2, (k.shape[2], -1))  # (B, T, K, G, C)
        blocks = _plan(grouped, context)
        keep = any(ctx.needs_input_grad) and _score_bytes(grouped, blocks) <= KEPT_BYTES
        kept = []
        out = torch.zeros(grouped.shape, dtype=q.dtype)
        for block in blocks:
            weights = block.weights(block.queries(grouped), block.keys(k))
            block.put_queries(out, torch.bmm(weights, block.keys(v)))
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.context = context
        return out.flatten(2, 3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor):
        q, k, v, *kept = ctx.saved_tensors
        q, grad_out = (x.unflatten(2, (k.shape[2], -1)) for x in (q, grad_out))
        grad_q = torch.zeros(q.shape, dtype=q.dtype)
        grad_k, grad_v = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        scale = q.shape[-1] ** -0.5
        for index, block in enumerate(_plan(q, ctx.context)):
            queries, keys, grad = block.queries(q), block.keys(k), block.queries(grad_out)
            weights = kept[index] if kept else block.weights(queries, keys)
            block.add_keys(grad_v, torch.bmm(weights.transpose(1, 2), grad))
            grad_weights = torch.bmm(grad, block.keys(v).transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            block.put_queries(grad_q, _scaled_bmm(grad_scores, keys, scale))
            block.add_keys(grad_k, _scaled_bmm(grad_scores.transpose(1, 2), queries, scale))
        return grad_q.flatten(2, 3), grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * (a @ b), with the scale applied inside the matmul."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def _plan(q: Tensor, context: AttentionContext | None) -> list[_Block]:
    """The blocks of a batch, with as many rows and heads as keep the scores in cache. q is (B, T, K, G, C)."""
    num_rows, tokens, heads, groups, _ = q.shape
    head_bytes = groups * min(QUERIES, tokens) * tokens * q.element_size()  # one row, one key-value head
    heads_at_once = max(1, min(heads, BLOCK_BYTES // head_bytes))
    rows_at_once = max(1, min(num_rows, BLOCK_BYTES // (head_bytes * heads)))
    key = rows_at_once, heads_at_once, heads, q.dtype
    if context is None or context.document_ids is None:
        return _blocks_of_rows(num_rows, tokens, *key)
    if key not in context._plans:
        context._plans[key] = _blocks(context.document_starts, *key)
    return context._plans[key]


@functools.lru_cache(maxsize=8)
def _blocks_of_rows(num_rows: int, tokens: int, *key: Any) -> list[_Block]:
    return _blocks(torch.zeros(num_rows, tokens, dtype=torch.int64), *key)


def _blocks(starts: Tensor, rows_at_once: int, heads_at_once: int, heads: int, dtype: torch.dtype) -> list[_Block]:
    """Split rows into blocks; a block's keys begin at the earliest document of its queries."""
    num_rows, tokens = starts.shape
    causal = torch.full((1, QUERIES, QUERIES), -torch.inf, dtype=dtype).triu_(1)
    blocks = []
    for first in range(0, tokens, QUERIES):
        last = min(first + QUERIES, tokens)
        for row in range(0, num_rows, rows_at_once):
            rows = slice(row, min(row + rows_at_once, num_rows))
            window = starts[rows, first:last]
            start = int(window.min())
            if start == tokens:  # nothing but padding
                continue
            alone = bool((window == start).all())  # no other document: a causal mask is enough
            bias = causal[:, : last - first, : last - first] if alone else _document_bias(window, first, start, dtype)
            for head in range(0, heads, heads_at_once):
                blocks.append(_Block(rows, first, last, start, slice(head, head + heads_at_once), bias))
    return blocks


def _document_bias(starts: Tensor, first: int, start: int, dtype: torch.dtype) -> Tensor:
    """0 from the start of a query's document to the query itself, -inf elsewhere: (rows, queries, keys)."""
    last = first + starts.shape[1]
    query, key = torch.arange(first, last)[:, None], torch.arange(start, last)
    visible = (starts[..., None] <= key) & (key <= query)
    visible |= starts[..., None] >= last  # padding attends to everything, so that no softmax is empty
    return torch.where(visible, 0.0, -torch.inf).to(dtype)


def _score_bytes(q: Tensor, blocks: list[_Block]) -> int:
    scores = sum(
        (b.rows.stop - b.rows.start) * (b.last - b.first) * (b.last - b.start) * len(range(q.shape[2])[b.heads])
        for b in blocks
    )
    return scores * q.shape[3] * q.element_size()


def _device_attention(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None) -> Tensor:
    """PyTorch's kernels on devices other than the CPU; with a mask only if several documents need one."""
    several = context if context is not None and context.holds_several else None
    if several and serve(q):
        return segment_attention(q, k, v, 0, several.segments(0, q.shape[1], q.device))
    mask = _document_mask(several, q.device) if several else None
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, is_causal=mask is None, enable_gqa=True
    )
    return out.transpose(1, 2)


def _document_mask(context: AttentionContext, device: torch.device) -> Tensor:
    if device not in context._plans:
        assert context.document_ids is not None
        ids = context.document_ids.to(device)
        same = ids[:, None, :, None] == ids[:, None, None, :]
        context._plans[device] = same & torch.ones(same.shape[-2:], dtype=torch.bool, device=device).tril()
    return context._plans[device]
