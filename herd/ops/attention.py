"""Causal attention inside documents, over rows in which several documents are packed.

`packed_attention` is the fast path, `reference_attention` its twin; they share no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionContext:
    """What attention must know of a batch beside its queries, keys and values."""

    document_ids: Tensor | None = None  # (B, T) int32; a token sees only its own document. None: one document a row


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext | None = None, cache: Any = None
) -> Tensor:
    """Each query sees the keys of its own document up to its own place.

    q is (B, T, H, C), k and v are (B, T, K, C) with K a divisor of H; the result is (B, T, H, C). Training needs no
    `cache`; the argument is part of the seam that every `attend` function fills.
    """
    if context is not None and context.document_ids is not None:
        return reference_attention(q, k, v, context)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    )
    return out.transpose(1, 2)


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
