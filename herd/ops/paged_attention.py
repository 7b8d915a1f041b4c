"""Attention over a paged KV cache: keys and values are in blocks of a common pool, a sequence has a list of blocks.

One flat row holds the tokens of all sequences in the batch: first the decoding ones, one token each, in groups of
similar length, then chunks of prompts. `paged_attention` is the model's `attend` function in the engine;
`reference_paged_attention` is its reference and shares no code with it. The cache has the model's dtype, or int8 with a
scale for every key and value: half the memory, and half the reads per token.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from herd.kernels import decoding
from herd.kernels import device as device_kernels

_SHARED_BLOCKS = 8
"""From so many on, a beginning that all sequences of a group have in common is worth its own products."""


class LayerCache(NamedTuple):
    """One layer's pool of blocks."""

    keys: Tensor  # (num_blocks, block_size, K, C)
    values: Tensor
    key_scales: Tensor | None = None  # (num_blocks, block_size, K) bfloat16, if the cache is int8
    value_scales: Tensor | None = None


@dataclass(frozen=True)
class DecodeGroup:
    """Sequences of similar length that decode one token each."""

    rows: slice  # their N places in the flat row
    blocks: Tensor  # (N, P) int64: the blocks of each sequence, padded with any block
    lengths: Tensor  # (N,) int64: tokens visible to each, the new one included
    mask: Tensor | None = None
    """(N, 1, 1, P * block_size) added to the scores: 0 for visible tokens, -inf beyond; None: made if needed."""

    @functools.cached_property
    def num_shared(self) -> int:
        """How many blocks, from the first on, all sequences have in common and see whole, once for all layers."""
        if len(self.blocks) < 2 or self.blocks.device.type != "cpu" or self.mask is None:
            return 0
        alike = (self.blocks == self.blocks[0]).all(0)
        block_size = self.mask.shape[-1] // len(alike)
        seen = torch.arange(1, len(alike) + 1) * block_size <= self.lengths.min()
        return int((alike & seen).long().cumprod(0).sum())


@dataclass(frozen=True)
class PromptChunk:
    """Consecutive tokens of one prompt."""

    rows: slice  # their places in the flat row
    blocks: Tensor  # (P,) int64: the sequence's blocks up to the chunk's end
    start: int  # tokens of the sequence that were computed before
    mask: Tensor | None  # (chunk, start + chunk) bool, True where a key is visible; None if start is 0


@dataclass(frozen=True)
class PagedContext:
    """Where each token of the flat row is written, and what it attends to."""

    slots: Tensor  # (T,) int64: block * block_size + place in the block
    decode: tuple[DecodeGroup, ...] = ()
    prompts: tuple[PromptChunk, ...] = ()

    @functools.cached_property
    def spans(self) -> np.ndarray:
        """`spans_of`, once for all layers."""
        return spans_of(self)


def decode_mask(lengths: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """The additive mask of a decode group: (N,) -> (N, 1, 1, num_keys)."""
    beyond = torch.arange(num_keys, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype, device=lengths.device).masked_fill_(beyond, -torch.inf)
    return mask[:, None, None, :]


def prompt_mask(start: int, num_tokens: int, device: torch.device | str | None = None) -> Tensor | None:
    """The mask of a prompt chunk, None for a first chunk (plain causal).

    On a GPU it is symbolic: PyTorch's flash attention applies it itself.
    """
    if start == 0:
        return None
    if torch.device(device or "cpu").type != "cpu":
        from torch.nn.attention.bias import causal_lower_right  # imports PyTorch's compiler, which takes a second

        return causal_lower_right(num_tokens, start + num_tokens)
    return torch.ones(num_tokens, start + num_tokens, dtype=torch.bool, device=device).tril_(start)


def paged_attention(q: Tensor, k: Tensor, v: Tensor, context: PagedContext, cache: LayerCache) -> Tensor:
    """Write the new keys and values to their slots, then attend causally within each sequence.

    q is (1, T, H, C), k and v are (1, T, K, C); the result is (1, T, H, C).
    """
    _write(cache, context.slots, k[0], v[0])
    if (out := _attend_compiled(q, context, cache)) is not None:
        return out
    parts = [_attend_decode(q[0, group.rows], group, cache) for group in context.decode]
    parts += [_attend_prompt(q[0, chunk.rows], k, v, chunk, cache) for chunk in context.prompts]
    return parts[0][None] if len(parts) == 1 else torch.cat(parts)[None]


def _attend_decode(q: Tensor, group: DecodeGroup, cache: LayerCache) -> Tensor:
    """(N, H, C) -> (N, H, C). The queries of one kv head are read as a short sequence, so that nothing is repeated."""
    if device_kernels.serves(q):
        from herd.kernels import triton_attention

        if (out := triton_attention.attend(q, *cache, group.blocks, group.lengths)) is not None:
            return out
    num_kv_heads = cache.keys.shape[2]
    queries = q.unflatten(1, (num_kv_heads, -1))  # (N, K, H / K, C)
    num_keys = group.blocks.shape[1] * cache.keys.shape[1]
    mask = decode_mask(group.lengths, num_keys, q.dtype) if group.mask is None else group.mask
    if group.num_shared >= _SHARED_BLOCKS:
        return _attend_shared(queries, group.blocks, group.num_shared, mask, cache).flatten(1, 2)
    keys, values = (part.transpose(1, 2) for part in _gather(cache, group.blocks, q.dtype))  # (N, K, S, C)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).flatten(1, 2)


def _attend_shared(q: Tensor, blocks: Tensor, shared: int, mask: Tensor, cache: LayerCache) -> Tensor:
    """(N, K, G, C) -> (N, K, G, C). The common beginning is gathered once, and all queries are held against it at once.

    Source: Juravsky et al. 2024, "Hydragen".
    """
    num_sequences, _, num_queries, num_channels = q.shape
    stem_keys, stem_values = (part[0].transpose(0, 1) for part in _gather(cache, blocks[:1, :shared], q.dtype))
    own_keys, own_values = (part.transpose(1, 2) for part in _gather(cache, blocks[:, shared:], q.dtype))
    queries = q.transpose(0, 1).flatten(1, 2) * num_channels**-0.5  # (K, N * G, C)
    to_stem = (queries @ stem_keys.transpose(1, 2)).unflatten(1, (num_sequences, num_queries)).transpose(0, 1)
    to_own = q @ own_keys.transpose(2, 3) * num_channels**-0.5 + mask[..., to_stem.shape[-1] :]
    shares = torch.cat((to_stem, to_own), -1).softmax(-1)
    of_stem, of_own = shares.split((to_stem.shape[-1], to_own.shape[-1]), -1)
    stem = (of_stem.transpose(0, 1).flatten(1, 2) @ stem_values).unflatten(1, (num_sequences, num_queries))
    return stem.transpose(0, 1) + of_own @ own_values


def spans_of(context: PagedContext) -> np.ndarray:
    """The context in the kernels' form: (N, 4) int64, the first row, tokens, earlier tokens and blocks per sequence.

    The last column is the address of the sequence's list of blocks; the context's tensors must outlive it.
    """
    rows = []
    for group in context.decode:
        width = group.blocks.shape[1] * group.blocks.itemsize
        first = group.blocks.data_ptr()
        rows += [
            (group.rows.start + n, 1, length - 1, first + n * width) for n, length in enumerate(group.lengths.tolist())
        ]
    rows += [(c.rows.start, c.rows.stop - c.rows.start, c.start, c.blocks.data_ptr()) for c in context.prompts]
    return np.array(rows, dtype=np.int64)


def _attend_compiled(q: Tensor, context: PagedContext, cache: LayerCache) -> Tensor | None:
    """A whole step in our kernel, which reads the cache in place; None if it does not support it."""
    lib = decoding.kernels()
    if lib is None or q.dtype != torch.bfloat16 or not kernels_fit(cache):
        return None
    q, spans = q.contiguous(), context.spans
    out = torch.empty_like(q)
    _, num_tokens, num_heads, num_channels = q.shape
    lib.attend(
        q.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr(), *scale_pointers(cache), spans.ctypes.data,
        len(spans), out.data_ptr(), num_tokens, num_heads, cache.keys.shape[2], num_channels, torch.get_num_threads(),
    )  # fmt: skip
    return out


def kernels_fit(cache: LayerCache) -> bool:
    """Whether the compiled kernels support this kind of cache."""
    _, block_size, _, num_channels = cache.keys.shape
    fits = block_size == 16 and num_channels in (32, 64, 128) and cache.keys.device.type == "cpu"
    return fits and cache.keys.dtype in (torch.bfloat16, torch.int8)


def scale_pointers(cache: LayerCache) -> tuple[int, int]:
    """The addresses of the scales of keys and values; zeros if the cache has none."""
    if cache.key_scales is None or cache.value_scales is None:
        return 0, 0
    return cache.key_scales.data_ptr(), cache.value_scales.data_ptr()


def _attend_prompt(q: Tensor, k: Tensor, v: Tensor, chunk: PromptChunk, cache: LayerCache) -> Tensor:
    """(T, H, C) -> (T, H, C). A first chunk needs nothing from the cache."""
    if chunk.mask is None:
        keys, values = k[:, chunk.rows], v[:, chunk.rows]
    else:
        keys, values = (part[:, : chunk.start + q.shape[0]] for part in _gather(cache, chunk.blocks[None], q.dtype))
    out = F.scaled_dot_product_attention(
        q[None].transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        enable_gqa=q.shape[1] != keys.shape[2],
    )
    return out[0].transpose(0, 1)


def _write(cache: LayerCache, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Put the new keys and values (T, K, C) into their slots."""
    if device_kernels.serves(k):
        from herd.kernels import triton_attention

        if triton_attention.write(k, v, slots, *cache):
            return
    for pool, scales, new in ((cache.keys, cache.key_scales, k), (cache.values, cache.value_scales, v)):
        if scales is not None:
            new, scale = quantize_heads(new)
            scales.flatten(0, 1).index_copy_(0, slots, scale)
        pool.flatten(0, 1).index_copy_(0, slots, new)


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each head's channels to int8: (..., C) -> int8 (..., C) and the scale (...) bfloat16."""
    wide = x.float()
    scale = (wide.abs().amax(-1) / 127).clamp_min(1e-30).to(torch.bfloat16)
    return (wide / scale.float()[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


def _gather(cache: LayerCache, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of each sequence, its blocks concatenated: (N, P) -> twice (N, P * block_size, K, C)."""
    return _gathered(cache.keys, cache.key_scales, blocks, dtype), _gathered(
        cache.values, cache.value_scales, blocks, dtype
    )


def _gathered(pool: Tensor, scales: Tensor | None, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    rows = pool.flatten(1).index_select(0, blocks.flatten()).view(blocks.shape[0], -1, *pool.shape[2:])
    if scales is None:
        return rows
    of_rows = scales.flatten(1).index_select(0, blocks.flatten()).view(rows.shape[:-1])
    return (rows.float() * of_rows.float()[..., None]).to(dtype)


def reference_paged_attention(q: Tensor, k: Tensor, v: Tensor, context: PagedContext, cache: LayerCache) -> Tensor:
    """The reference for `paged_attention`: token by token, key by key, in float32."""
    block_size = cache.keys.shape[1]
    for token, slot in enumerate(context.slots.tolist()):
        place = slot // block_size, slot % block_size
        cache.keys[place], cache.values[place] = k[0, token], v[0, token]
        if cache.key_scales is not None and cache.value_scales is not None:
            cache.keys[place], cache.key_scales[place] = quantize_heads(k[0, token])
            cache.values[place], cache.value_scales[place] = quantize_heads(v[0, token])
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
    if cache.key_scales is not None and cache.value_scales is not None:
        keys *= torch.stack([cache.key_scales[place] for place in places]).float()[..., None]
        values *= torch.stack([cache.value_scales[place] for place in places]).float()[..., None]
    out = torch.empty_like(q)
    for head in range(q.shape[0]):
        kv_head = head * num_kv_heads // q.shape[0]
        weights = (keys[:, kv_head] @ q[head].float() / num_channels**0.5).softmax(0)
        out[head] = weights @ values[:, kv_head]
    return out
