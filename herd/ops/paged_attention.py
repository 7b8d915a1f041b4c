"""Attention over a paged cache: keys and values lie in blocks of a common pool, a sequence holds a list of blocks.

One flat row holds the tokens of all sequences in the batch: first the decoding ones, one token each, in groups of
similar length, then chunks of prompts. `paged_attention` fills the model's `attend` seam;
`reference_paged_attention` is its twin and shares no code with it.

Source: facts §8.3; Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerCache(NamedTuple):
    """One layer's pool of blocks."""

    keys: Tensor  # (num_blocks, block_size, K, C)
    values: Tensor


@dataclass(frozen=True)
class DecodeGroup:
    """Sequences of similar length that add one token each."""

    rows: slice  # their N places in the flat row
    blocks: Tensor  # (N, P) int64: the blocks of each sequence, filled up with any block
    lengths: Tensor  # (N,) int64: tokens each sees, the new one included
    mask: Tensor  # (N, 1, 1, P * block_size) added to the scores: 0 for tokens it sees, -inf beyond


@dataclass(frozen=True)
class PromptChunk:
    """Consecutive tokens of one prompt."""

    rows: slice  # their places in the flat row
    blocks: Tensor  # (P,) int64: the sequence's blocks up to the chunk's end
    start: int  # tokens of the sequence that were computed before
    mask: Tensor | None  # (chunk, start + chunk) bool, True where a token sees a key; None when start is 0


@dataclass(frozen=True)
class PagedContext:
    """Where each token of the flat row is written, and what it sees."""

    slots: Tensor  # (T,) int64: block * block_size + place in the block
    decode: tuple[DecodeGroup, ...] = ()
    prompts: tuple[PromptChunk, ...] = ()


def decode_mask(lengths: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """The additive mask of a decode group: (N,) -> (N, 1, 1, num_keys)."""
    beyond = torch.arange(num_keys, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype, device=lengths.device).masked_fill_(beyond, -torch.inf)
    return mask[:, None, None, :]


def prompt_mask(start: int, num_tokens: int, device: torch.device | str | None = None) -> Tensor | None:
    """The mask of a prompt chunk, None for a first chunk (plain causal)."""
    if start == 0:
        return None
    return torch.ones(num_tokens, start + num_tokens, dtype=torch.bool, device=device).tril_(start)


def paged_attention(q: Tensor, k: Tensor, v: Tensor, context: PagedContext, cache: LayerCache) -> Tensor:
    """Write the new keys and values to their slots, then let each token see its own sequence up to itself.

    q is (1, T, H, C), k and v are (1, T, K, C); the result is (1, T, H, C).
    """
    cache.keys.flatten(0, 1).index_copy_(0, context.slots, k[0])
    cache.values.flatten(0, 1).index_copy_(0, context.slots, v[0])
    parts = [_attend_decode(q[0, group.rows], group, cache) for group in context.decode]
    parts += [_attend_prompt(q[0, chunk.rows], k, v, chunk, cache) for chunk in context.prompts]
    return parts[0][None] if len(parts) == 1 else torch.cat(parts)[None]


def _attend_decode(q: Tensor, group: DecodeGroup, cache: LayerCache) -> Tensor:
    """(N, H, C) -> (N, H, C). The queries of one kv head are read as a short sequence, so that nothing is repeated."""
    num_kv_heads = cache.keys.shape[2]
    keys, values = (_gather(pool, group.blocks).transpose(1, 2) for pool in cache)  # (N, K, S, C)
    queries = q.unflatten(1, (num_kv_heads, -1))  # (N, K, H / K, C)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask).flatten(1, 2)


def _attend_prompt(q: Tensor, k: Tensor, v: Tensor, chunk: PromptChunk, cache: LayerCache) -> Tensor:
    """(T, H, C) -> (T, H, C). A first chunk needs nothing from the cache."""
    if chunk.mask is None:
        keys, values = k[:, chunk.rows], v[:, chunk.rows]
    else:
        keys, values = (_gather(pool, chunk.blocks[None])[:, : chunk.mask.shape[1]] for pool in cache)
    out = F.scaled_dot_product_attention(
        q[None].transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        enable_gqa=q.shape[1] != keys.shape[2],
    )
    return out[0].transpose(0, 1)


def _gather(pool: Tensor, blocks: Tensor) -> Tensor:
    """The blocks of each sequence side by side: (num_blocks, S, K, C), (N, P) -> (N, P * S, K, C)."""
    rows = pool.flatten(1).index_select(0, blocks.flatten())
    return rows.view(blocks.shape[0], -1, *pool.shape[2:])


def reference_paged_attention(q: Tensor, k: Tensor, v: Tensor, context: PagedContext, cache: LayerCache) -> Tensor:
    """The twin of `paged_attention`: token by token, key by key, in float32."""
    block_size = cache.keys.shape[1]
    for token, slot in enumerate(context.slots.tolist()):
        cache.keys[slot // block_size, slot % block_size] = k[0, token]
        cache.values[slot // block_size, slot % block_size] = v[0, token]
    out = torch.zeros_like(q)
    for group in context.decode:
        for n, length in enumerate(group.lengths.tolist()):
            token = group.rows.start + n
            out[0, token] = _attend_token(q[0, token], group.blocks[n].tolist(), length, cache)
    for chunk in context.prompts:
        for n in range(chunk.rows.stop - chunk.rows.start):
            token = chunk.rows.start + n
            out[0, token] = _attend_token(q[0, token], chunk.blocks.tolist(), chunk.start + n + 1, cache)
    return out


def _attend_token(q: Tensor, blocks: list[int], length: int, cache: LayerCache) -> Tensor:
    """One token's attention (H, C) over the first `length` places of a sequence."""
    block_size, num_kv_heads, num_channels = cache.keys.shape[1:]
    places = [(blocks[place // block_size], place % block_size) for place in range(length)]
    keys = torch.stack([cache.keys[place] for place in places]).float()  # (S, K, C)
    values = torch.stack([cache.values[place] for place in places]).float()
    out = torch.empty_like(q)
    for head in range(q.shape[0]):
        kv_head = head * num_kv_heads // q.shape[0]
        weights = (keys[:, kv_head] @ q[head].float() / num_channels**0.5).softmax(0)
        out[head] = weights @ values[:, kv_head]
    return out
