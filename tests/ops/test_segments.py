"""Attention of documents in packed rows by segments, as a GPU computes it: the results of the masked twin."""

import pytest
import torch

from herd.ops import attention
from herd.ops.attention import AttentionContext, packed_attention, reference_attention
from herd.ops.segments import find_segments, reference_segments, segment_attention
from herd.parallel.context import window_attention

IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1, -1], [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]], dtype=torch.int32)


def rows(heads: int, kv_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 12, count, 8, requires_grad=True) for count in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_segments_of_whole_rows_give_the_twins_results_and_gradients(heads, kv_heads):
    tensors, context, seen = rows(heads, kv_heads), AttentionContext(IDS), IDS >= 0
    segments = context.segments(0, 12, torch.device("cpu"))
    assert segments.query_ends.tolist() == segments.key_ends.tolist() == [0, 3, 5, 9, 12, 24]
    got = segment_attention(*tensors, 0, segments, reference_segments)[seen]
    expected = reference_attention(*tensors, context)[seen]
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, tensors, weights), torch.autograd.grad(expected, tensors, weights), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("begin", [0, 3, 4, 6])
def test_a_window_of_queries_sees_its_documents_from_their_beginning(begin):
    q, k, v = rows(4, 2)
    context, window = AttentionContext(IDS), slice(begin, begin + 5)
    segments = context.segments(begin, 5, torch.device("cpu"))
    got = segment_attention(q[:, window], k, v, begin, segments, reference_segments)
    seen = IDS[:, window] >= 0
    torch.testing.assert_close(got[seen], window_attention(q[:, window], k, v, begin, context)[seen])
    torch.testing.assert_close(got[seen], reference_attention(q, k, v, context)[:, window][seen])


def test_layers_share_one_cut_and_one_look_at_the_device(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return find_segments(*arguments)

    monkeypatch.setattr(attention, "find_segments", counted)
    context = AttentionContext(IDS)
    for _ in range(32):
        context.segments(0, 12, torch.device("cpu"))
    assert len(calls) == 1 and context.holds_several
    assert not AttentionContext(IDS[1:]).holds_several and not AttentionContext().holds_several


@pytest.mark.gpu
@pytest.mark.parametrize("begin", [0, 4])
def test_on_a_gpu_pytorchs_kernel_agrees_with_the_twin_forwards_and_backwards(begin):
    tensors = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in rows(4, 2)]
    q, k, v = tensors
    context, seen = AttentionContext(IDS.cuda()), (IDS >= 0)[:, begin:].cuda()
    got = window_attention(q[:, begin:], k, v, begin, context)[seen]
    if begin == 0:
        torch.testing.assert_close(packed_attention(q, k, v, context)[seen], got)
    wide = [x.detach().float().requires_grad_() for x in tensors]
    expected = reference_attention(*wide, context)[:, begin:][seen]
    torch.testing.assert_close(got.float(), expected, atol=0.02, rtol=0.02)
    for one, other in zip(
        torch.autograd.grad(got.float().sum(), tensors), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0.05)
