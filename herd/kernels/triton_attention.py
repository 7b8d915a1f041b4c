"""Triton kernels for the paged KV cache: attention of decoding sequences, and writing new keys and values.

A sequence's keys are split into parts by its length only, each part is one program, and a second kernel combines the
parts in a fixed order: one long sequence uses a whole GPU, and its result does not depend on other sequences. Grids
depend on sizes that the host knows, not on lengths, so that CUDA graphs can capture them. The references are in
`paged_attention.py`. This module imports Triton, so it is used only after `device_kernels.serves`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.device import Launch, run, wide_in_tests

MOST_PARTS = 32
"""Most parts of a sequence."""
LEAST_PART = 256
"""Fewest keys of a part, except the last."""
_TILE = 64  # keys at a time
_LOG2_E = 1.4426950408889634


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    blocks: Tensor,
    lengths: Tensor,
) -> Tensor | None:
    """Each query's attention to its sequence: (N, H, C), the pools, blocks (N, P), lengths (N,) -> (N, H, C).

    None while the kernels are not compiled.
    """
    num_rows, num_heads, num_channels = q.shape
    _, block_size, num_kv_heads, _ = keys.shape
    num_parts = min(-(-blocks.shape[1] * block_size // LEAST_PART), MOST_PARTS)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    found = torch.empty(num_rows, num_heads, num_parts, num_channels, dtype=torch.float32, device=q.device)
    sums = torch.empty(num_rows, num_heads, num_parts, 2, dtype=torch.float32, device=q.device)
    scales = (keys, values) if key_scales is None else (key_scales, value_scales)  # any pointer, since it is not read
    group = num_heads // num_kv_heads
    shape = {"CHANNELS": num_channels, "WIDTH": max(triton.next_power_of_2(num_channels), 16)}
    cut = {"TILE": _TILE, "LEAST": LEAST_PART, "MOST": MOST_PARTS}
    parts = Launch(
        _attend_part,
        (num_kv_heads, num_rows, num_parts),
        (q.contiguous(), keys, values, *scales, blocks, lengths, found, sums,
         num_channels**-0.5 * _LOG2_E, blocks.stride(0), num_parts),
        {
            **shape, **cut, "HEADS": num_heads, "GROUP": group, "BLOCK": block_size, "SCALED": key_scales is not None,
            "ROWS": max(triton.next_power_of_2(group), 16), "NUMBER": wide_in_tests(q.dtype), "num_warps": 4,
            "num_stages": 3,
        },
    )  # fmt: skip
    joined = Launch(
        _join_parts, (num_rows * num_heads,), (found, sums, lengths, out, num_parts),
        {**shape, **cut, "HEADS": num_heads, "num_warps": 4},
    )  # fmt: skip
    return out if run([parts, joined]) else None


def write(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> bool:
    """Write new keys and values (T, K, C) to their slots of the pools; False while the kernel is not compiled."""
    num_tokens, num_kv_heads, num_channels = k.shape
    scales = (keys, values) if key_scales is None else (key_scales, value_scales)
    return run([
        Launch(
            _write, (num_tokens, num_kv_heads), (k, v, slots, keys, values, *scales, k.stride(0), v.stride(0)),
            {
                "HEADS": num_kv_heads, "CHANNELS": num_channels, "WIDTH": triton.next_power_of_2(num_channels),
                "SCALED": key_scales is not None, "num_warps": 1,
            },
        )
    ])  # fmt: skip


@triton.jit
def _part_size(length, TILE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """Keys per part of a sequence: a function of its length only."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, MOST), TILE) * TILE, LEAST)


@triton.jit(do_not_specialize=["table_stride", "num_parts"], do_not_specialize_on_alignment=["blocks", "lengths", "q"])
def _attend_part(
    q, keys, values, key_scales, value_scales, blocks, lengths, found, sums, scale, table_stride, num_parts,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, SCALED: tl.constexpr,
    NUMBER: tl.constexpr,
):  # fmt: skip
    """Unnormalized softmax over one part of a sequence, for the queries that share a key-value head."""
    kv_head, row, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(lengths + row).to(tl.int32)
    size = _part_size(length, TILE, LEAST, MOST)
    begin = part * size
    if begin >= length:
        return
    end = tl.minimum(begin + size, length)
    head, channel = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    place_of = (row * HEADS + kv_head * GROUP + head).to(tl.int64)
    is_channel = channel < CHANNELS
    is_query = (head < GROUP)[:, None] & is_channel[None, :]
    query = tl.load(q + place_of[:, None] * CHANNELS + channel[None, :], mask=is_query, other=0.0).to(NUMBER)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(begin, end, TILE):
        place = first + tl.arange(0, TILE)
        is_seen = place < end
        block = tl.load(blocks + row * table_stride + place // BLOCK, mask=is_seen, other=0).to(tl.int64)
        slot = (block * BLOCK + place % BLOCK) * (HEADS // GROUP) + kv_head
        key_mask = is_channel[:, None] & is_seen[None, :]
        key = tl.load(keys + slot[None, :] * CHANNELS + channel[:, None], mask=key_mask, other=0.0)
        scores = tl.dot(query, key.to(tl.float32).to(NUMBER), input_precision="ieee") * scale
        if SCALED:
            scores *= tl.load(key_scales + slot, mask=is_seen, other=0.0).to(tl.float32)[None, :]
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - now[:, None])
        shrink = tl.exp2(largest - now)
        total = total * shrink + tl.sum(weights, 1)
        value_mask = is_seen[:, None] & is_channel[None, :]
        value = tl.load(values + slot[:, None] * CHANNELS + channel[None, :], mask=value_mask, other=0.0)
        if SCALED:
            weights *= tl.load(value_scales + slot, mask=is_seen, other=0.0).to(tl.float32)[None, :]
        out = out * shrink[:, None] + tl.dot(
            weights.to(NUMBER), value.to(tl.float32).to(NUMBER), input_precision="ieee"
        )
        largest = now
    target = place_of * num_parts + part
    tl.store(found + target[:, None] * CHANNELS + channel[None, :], out, mask=is_query)
    tl.store(sums + target * 2, largest, mask=head < GROUP)
    tl.store(sums + target * 2 + 1, total, mask=head < GROUP)


@triton.jit(do_not_specialize=["num_parts"], do_not_specialize_on_alignment=["lengths"])
def _join_parts(
    found, sums, lengths, out, num_parts,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Combine one query's parts, always in the same order, whatever the grid."""
    place = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + place // HEADS).to(tl.int32)
    part, channel = tl.arange(0, MOST), tl.arange(0, WIDTH)
    is_used = part < tl.cdiv(length, _part_size(length, TILE, LEAST, MOST))
    source = place * num_parts + part
    largest = tl.load(sums + source * 2, mask=is_used, other=float("-inf"))
    share = tl.exp2(largest - tl.max(largest, 0))
    total = tl.sum(tl.load(sums + source * 2 + 1, mask=is_used, other=0.0) * share, 0)
    mask = is_used[:, None] & (channel < CHANNELS)[None, :]
    parts = tl.load(found + source[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0)
    result = tl.sum(parts * share[:, None], 0) / total
    tl.store(out + place * CHANNELS + channel, result.to(out.dtype.element_ty), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["k_stride", "v_stride"], do_not_specialize_on_alignment=["k", "v", "slots"])
def _write(
    k, v, slots, keys, values, key_scales, value_scales, k_stride, v_stride,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Write one token's key and value of one head, quantized if the cache is int8."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    mask = channel < CHANNELS
    target = tl.load(slots + token).to(tl.int64) * HEADS + head
    key = tl.load(k + token * k_stride + head * CHANNELS + channel, mask=mask, other=0.0)
    value = tl.load(v + token * v_stride + head * CHANNELS + channel, mask=mask, other=0.0)
    if SCALED:
        key, key_scale = _rounded(key.to(tl.float32))
        value, value_scale = _rounded(value.to(tl.float32))
        tl.store(key_scales + target, key_scale)
        tl.store(value_scales + target, value_scale)
    tl.store(keys + target * CHANNELS + channel, key.to(keys.dtype.element_ty), mask=mask)
    tl.store(values + target * CHANNELS + channel, value.to(values.dtype.element_ty), mask=mask)


@triton.jit
def _rounded(x):
    """As `quantize_heads`: integers up to 127, with ties to even (by adding 1.5 x 2^23), and their scale."""
    bits = tl.maximum(tl.max(tl.abs(x), 0) / 127, 1e-30).to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # to bfloat16, to the nearest, ties to even
    scale = bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    whole = (tl.div_rn(x, scale.to(tl.float32)) + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(whole, -127.0), 127.0), scale
