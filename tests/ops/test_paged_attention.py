"""Attention over a paged cache where sequences begin alike."""

from __future__ import annotations

import pytest
import torch

from herd.ops.paged_attention import (
    DecodeGroup,
    LayerCache,
    PagedContext,
    decode_mask,
    paged_attention,
    reference_paged_attention,
)

BLOCK = 16


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "lengths, num_shared",
    [([170, 180, 201], 10), ([161, 161], 10), ([129, 150], 8), ([129, 250], 8), ([40, 60], 2), ([200], 0)],
)
def test_a_beginning_that_sequences_share_counts_as_if_each_had_its_own(lengths, num_shared, int8):
    torch.manual_seed(0)
    width = -(-max(lengths) // BLOCK)
    blocks = torch.arange(len(lengths) * width).reshape(len(lengths), width)
    blocks[:, :num_shared] = torch.arange(num_shared)
    group = DecodeGroup(
        slice(0, len(lengths)),
        blocks,
        torch.tensor(lengths),
        decode_mask(torch.tensor(lengths), width * BLOCK, torch.float32),
    )
    assert group.num_shared == (num_shared if len(lengths) > 1 else 0)
    pools = [torch.randn(blocks.numel(), BLOCK, 3, 8) for _ in range(2)]
    scales = [torch.rand(blocks.numel(), BLOCK, 3).bfloat16() for _ in range(2)] if int8 else []
    if int8:
        pools = [(pool * 40).to(torch.int8) for pool in pools]
    q, k, v = (torch.randn(1, len(lengths), heads, 8) for heads in (9, 3, 3))
    places = torch.tensor(lengths) - 1
    slots = blocks[torch.arange(len(lengths)), places // BLOCK] * BLOCK + places % BLOCK
    context = PagedContext(slots, decode=(group,))
    got, expected = (
        attend(q, k, v, context, LayerCache(*(part.clone() for part in (*pools, *scales))))
        for attend in (paged_attention, reference_paged_attention)
    )
    assert torch.allclose(got, expected, atol=1e-5, rtol=1e-4)


def test_guesses_behind_one_sequence_see_only_what_lies_before_them():
    blocks, lengths = torch.arange(9).repeat(3, 1), torch.tensor([141, 142, 143])
    group = DecodeGroup(slice(0, 3), blocks, lengths, decode_mask(lengths, 9 * BLOCK, torch.float32))
    assert group.num_shared == 8  # the ninth block, in which they differ, is not common
