"""Context parallelism: a row's tokens are split over several processes, which all gather its keys and values.

A row is split into 2 x size chunks and process i holds chunks i and 2 x size - 1 - i, so that all have the same share
of the causal triangle. Gathering all keys and values first (not in a ring) makes any mask easy, the document mask
included; with grouped-query attention they are small.

Source: The Llama 3 Herd of Models, section 3.3.2.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from herd.ops.attention import AttentionContext
from herd.ops.segments import segment_attention, serve
from herd.parallel.tensor import gather
from herd.types import Batch

QUERIES = 512
"""Queries per block, and so rows of its mask."""


def cut_rows(x: Tensor, index: int, size: int) -> Tensor:
    """The two chunks of x (B, T, ...) that process `index` of `size` holds: (B, T / size, ...)."""
    chunks = x.unflatten(1, (2 * size, -1))
    return torch.cat((chunks[:, index], chunks[:, 2 * size - 1 - index]), 1)


def joined(x: Tensor, size: int) -> Tensor:
    """The inverse: the chunks of all processes, concatenated (B, T, ...), in the order of the row."""
    order = [2 * chunk if chunk < size else 2 * (2 * size - 1 - chunk) + 1 for chunk in range(2 * size)]
    return x.unflatten(1, (2 * size, -1))[:, order].flatten(1, 2)


def cut_batch(batch: Batch, index: int, size: int) -> Batch:
    """A process's part of a batch. `document_ids` are not split: the mask needs the documents of all keys."""
    tokens, labels, positions = (cut_rows(x, index, size) for x in (batch.tokens, batch.labels, batch.positions))
    return replace(batch, tokens=tokens, labels=labels, positions=positions)


class ContextAttention:
    """The `attend` of a process with two chunks of each row; its `context` has the documents of whole rows."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.index, self.size = group, group.rank(), group.size()

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
    ) -> Tensor:
        keys, values = joined(gather(torch.cat((k, v), -1), self.group), self.size).chunk(2, -1)
        chunk = q.shape[1] // 2
        begins = (self.index * chunk, (2 * self.size - 1 - self.index) * chunk)
        return torch.cat(
            [window_attention(x, keys, values, begin, context) for x, begin in zip(q.chunk(2, 1), begins)], 1
        )


def window_attention(q: Tensor, k: Tensor, v: Tensor, begin: int, context: AttentionContext | None = None) -> Tensor:
    """Attention of the queries from position `begin` on to earlier keys of their own documents.

    q is (B, Q, H, C), k and v are (B, T, K, C); the result is (B, Q, H, C), unspecified at padding.
    """
    if serve(q):
        context = _whole_rows(*k.shape[:2]) if context is None or context.document_ids is None else context
        return segment_attention(q, k, v, begin, context.segments(begin, q.shape[1], q.device))
    starts = None if context is None or context.document_ids is None else context.document_starts
    blocks = [
        _block(q[:, first : first + QUERIES], k, v, begin + first, starts) for first in range(0, q.shape[1], QUERIES)
    ]
    return torch.cat(blocks, 1)


@functools.lru_cache(maxsize=8)
def _whole_rows(num_rows: int, tokens: int) -> AttentionContext:
    return AttentionContext(torch.zeros(num_rows, tokens, dtype=torch.int32))


def _block(q: Tensor, k: Tensor, v: Tensor, first: int, starts: Tensor | None) -> Tensor:
    last = first + q.shape[1]
    window = torch.zeros(len(q), q.shape[1], dtype=torch.int64) if starts is None else starts[:, first:last]
    start = min(int(window.min()), first)
    query, key = torch.arange(first, last)[:, None], torch.arange(start, last)
    visible = (window[..., None] <= key) & (key <= query)
    visible |= window[..., None] >= last  # padding attends to everything, so that no softmax is empty
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k[:, start:last].transpose(1, 2),
        v[:, start:last].transpose(1, 2),
        visible[:, None].to(q.device),
        enable_gqa=True,
    )
    return out.transpose(1, 2)
