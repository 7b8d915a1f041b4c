"""Chunks of rows, and attention of a few queries to all keys."""

import torch

from herd.ops.attention import AttentionContext, reference_attention
from herd.parallel.context import cut_rows, joined, window_attention


def test_what_the_processes_hold_one_after_the_other_is_put_in_order():
    rows = torch.arange(48).reshape(2, 24)
    for size in (1, 2, 3, 4):
        parts = [cut_rows(rows, index, size) for index in range(size)]
        assert torch.equal(joined(torch.cat(parts, 1), size), rows)


def test_every_process_has_the_same_share_of_the_causal_triangle():
    places = torch.arange(64)[None]
    sums = {int(cut_rows(places, index, 4).sum()) for index in range(4)}
    assert len(sums) == 1


def test_queries_of_a_window_see_their_documents_keys_as_in_whole_rows(monkeypatch):
    monkeypatch.setattr("herd.parallel.context.QUERIES", 5)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 32, 4, 8), torch.randn(2, 32, 2, 8), torch.randn(2, 32, 2, 8)
    ids = torch.zeros(2, 32, dtype=torch.int32)
    ids[0, 7:20], ids[0, 20:], ids[1, 30:] = 1, 2, -1
    context = AttentionContext(ids)
    expected = reference_attention(q, k, v, context)
    for begin, end in [(0, 32), (4, 12), (19, 21), (16, 32)]:
        got = window_attention(q[:, begin:end], k, v, begin, context)
        real = ids[:, begin:end] >= 0
        torch.testing.assert_close(got[real], expected[:, begin:end][real])
        assert got.isfinite().all()
