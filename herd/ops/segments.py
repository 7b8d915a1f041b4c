"""Document-masked attention on a GPU with PyTorch's variable-length attention, which skips masked blocks.

Packed rows become one sequence of segments, one per document. A window of queries in a row (context parallelism) works
in the same way: its first segment has more keys than queries, and causality is counted from the end.
`reference_segments` is the reference for PyTorch's kernel and runs anywhere.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_CAPABILITY = (8, 0)
_MOST_CHANNELS = 256


class Segments(NamedTuple):
    """The borders of documents in a window of queries and in its visible keys."""

    first_keys: tuple[int, ...]  # of each row
    query_ends: Tensor  # (S + 1,) int32: offsets in the flat queries, from 0
    key_ends: Tensor  # (S + 1,) int32: offsets in the flat keys
    most_queries: int
    most_keys: int


Kernel = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


def serve(q: Tensor) -> bool:
    """Whether PyTorch's kernel supports these queries, (..., C)."""
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= _MOST_CHANNELS
    return fits and torch.version.cuda is not None and torch.cuda.get_device_capability(q.device) >= _LEAST_CAPABILITY


def find_segments(starts: Tensor, begin: int, num_queries: int, device: torch.device) -> Segments:
    """The segments of each row's queries from position `begin` on.

    `starts` (B, T) on the CPU is the beginning of each token's document, T for padding, which attends only to itself.
    """
    window = starts[:, begin : begin + num_queries]
    parts = window[:, 1:] != window[:, :-1]
    first_keys, query_counts, key_counts = [], [], []
    for row in range(len(window)):
        borders = [0, *(parts[row].nonzero().flatten() + 1).tolist(), num_queries]
        counts = [stop - start for start, stop in pairwise(borders)]
        first = int(window[row, 0])
        first = first if first <= begin else begin
        first_keys.append(first)
        query_counts += counts
        key_counts += [counts[0] + begin - first, *counts[1:]]
    ends = torch.tensor([[0, *query_counts], [0, *key_counts]]).cumsum(1).to(torch.int32)
    query_ends, key_ends = ends.to(device, non_blocking=True).unbind(0)
    return Segments(tuple(first_keys), query_ends, key_ends, max(query_counts), max(key_counts))


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, begin: int, segments: Segments, kernel: Kernel | None = None
) -> Tensor:
    """Attention of q (B, Q, H, C), from position `begin` on, to its rows' k and v (B, T, K, C): (B, Q, H, C)."""
    last = begin + q.shape[1]
    if last - begin == k.shape[1]:
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
    else:
        keys, values = (
            torch.cat([x[row, first:last] for row, first in enumerate(segments.first_keys)]) for x in (k, v)
        )
    return (kernel or pytorch_segments)(q.flatten(0, 1), keys, values, segments).view(q.shape)


def pytorch_segments(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Flash attention segment by segment in one launch: (S queries, H, C), (S keys, K, C) -> (S queries, H, C)."""
    from torch.nn.attention.varlen import varlen_attn  # a slow import, needed only here

    ends = segments.query_ends, segments.key_ends
    result = varlen_attn(q, k, v, *ends, segments.most_queries, segments.most_keys, **_causal(varlen_attn))
    assert isinstance(result, Tensor)  # a pair only if sums of exponentials are requested
    return result


@functools.cache
def _causal(varlen_attn: Callable) -> dict:
    """This PyTorch version's arguments for causal masking and grouped heads."""
    names = inspect.signature(varlen_attn).parameters
    options: dict = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    return options | ({"enable_gqa": True} if "enable_gqa" in names else {})


def reference_segments(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """The reference for `pytorch_segments`: segment by segment, with a mask."""
    out = []
    query_ends, key_ends = (pairwise(ends.tolist()) for ends in (segments.query_ends, segments.key_ends))
    for (start, stop), (first, last) in zip(query_ends, key_ends, strict=True):
        query, key, value = (x.transpose(0, 1)[None] for x in (q[start:stop], k[first:last], v[first:last]))
        mask = torch.ones(stop - start, last - first, dtype=torch.bool, device=q.device)
        mask = mask.tril_(last - first - (stop - start))
        out.append(F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(out)
