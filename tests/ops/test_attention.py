"""Blockwise packed attention against its dense-masked twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.kernels.native import find_compiler, library
from herd.ops import attention
from herd.ops.attention import (
    AttentionContext,
    block_attention,
    native_attention,
    packed_attention,
    reference_attention,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def document_ids(rows: list[list[int]], tokens: int) -> torch.Tensor:
    """Ids of documents of the given lengths; what is left of a row is padding."""
    ids = torch.full((len(rows), tokens), -1, dtype=torch.int32)
    for row, lengths in zip(ids, rows, strict=True):
        filled = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths))
        row[: len(filled)] = filled
    return ids


def gradients(attend, q, k, v, context, weight):
    """Output and gradients, with nothing asked of padding."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, context) * weight
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]


def compare(rows, tokens, heads, kv_heads, channels=16, dtype=torch.float32, attend=block_attention):
    torch.manual_seed(len(rows) * tokens)
    q = torch.randn(len(rows), tokens, heads, channels).to(dtype)
    k, v = (torch.randn(len(rows), tokens, kv_heads, channels).to(dtype) for _ in range(2))
    ids = document_ids(rows, tokens)
    weight = (ids >= 0)[..., None, None].to(dtype)
    context = AttentionContext(ids)
    fast = gradients(attend, q, k, v, context, weight)
    twin = gradients(reference_attention, *(x.float() for x in (q, k, v)), context, weight.float())
    for got, expected in zip(fast, twin, strict=True):
        assert torch.isfinite(got).all()
        scale = expected.abs().max().item()
        torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype] * max(1, scale), rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_values_and_gradients_equal_the_twin(heads, kv_heads, dtype):
    compare([[700], [100, 1, 256, 343], [3] * 100, [512, 20]], 700, heads, kv_heads, dtype=dtype)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 255, 256, 257, 300])
def test_any_row_length_works(tokens):
    compare([[tokens], [max(1, tokens // 2)]], tokens, 4, 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=3))
def test_any_packing_works(rows):
    compare(rows, max(sum(row) for row in rows) + 3, 4, 2, channels=8)


def test_weights_computed_again_give_the_same_gradients_as_kept_ones(monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 300, 4, 16), torch.randn(2, 300, 2, 16), torch.randn(2, 300, 2, 16)
    context = AttentionContext(document_ids([[200, 100], [300]], 300))
    kept = gradients(packed_attention, q, k, v, context, 1.0)
    monkeypatch.setattr(attention, "KEPT_BYTES", 0)
    again = gradients(packed_attention, q, k, v, context, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_heads_are_taken_in_groups_where_a_block_would_outgrow_the_cache(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_BYTES", 2**16)
    compare([[300], [100, 200]], 300, 8, 4)


def test_padding_may_stand_anywhere():
    ids = document_ids([[250]], 300)
    ids[0, :40] = -1
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 300, 4, 16), torch.randn(1, 300, 2, 16), torch.randn(1, 300, 2, 16)
    got, expected = (f(q, k, v, AttentionContext(ids)) for f in (packed_attention, reference_attention))
    torch.testing.assert_close(got[:, 40:250], expected[:, 40:250])


def test_no_context_means_one_document_a_row():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 70, 4, 16), torch.randn(2, 70, 2, 16), torch.randn(2, 70, 2, 16)
    torch.testing.assert_close(packed_attention(q, k, v), reference_attention(q, k, v))


def test_blocks_of_other_documents_and_of_the_future_are_not_computed():
    q = torch.zeros(1, 2048, 1, 1, 8)
    blocks = attention._plan(q, AttentionContext(document_ids([[256] * 8], 2048)))
    pairs = sum((b.last - b.first) * (b.last - b.start) for b in blocks)
    assert pairs == 8 * (128 * 128 + 128 * 256)
    padded = attention._plan(q, AttentionContext(document_ids([[300]], 2048)))
    assert padded[-1].last == 384


def test_inputs_need_not_be_contiguous():
    torch.manual_seed(0)
    fused = torch.randn(2, 40, 8, 16)
    q, k, v = fused[:, :, :4], fused[:, :, 4:6], fused[:, :, 6:]
    torch.testing.assert_close(packed_attention(q, k, v), reference_attention(q, k, v))


def test_where_there_is_another_device_pytorchs_kernels_give_the_same():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 70, 4, 16), torch.randn(2, 70, 2, 16), torch.randn(2, 70, 2, 16)
    context = AttentionContext(document_ids([[30, 40], [70]], 70))
    for given_context in (context, None, AttentionContext(document_ids([[70], [70]], 70))):
        theirs = attention._device_attention(q, k, v, given_context)
        torch.testing.assert_close(theirs, reference_attention(q, k, v, given_context))


# ---- the C++ kernel --------------------------------------------------------------------------------------------------

needs_kernel = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or find_compiler() is None, reason="no AVX-512 BF16 or no C++ compiler"
)


@needs_kernel
@pytest.mark.parametrize("heads, kv_heads, channels", [(4, 4, 16), (4, 2, 32), (6, 1, 48), (2, 2, 64), (2, 1, 128)])
def test_the_kernel_equals_the_twin_for_any_packing(heads, kv_heads, channels):
    rows = [[700], [100, 1, 256, 343], [3] * 100, [512, 20]]
    compare(rows, 700, heads, kv_heads, channels, torch.bfloat16, native_attention)


@needs_kernel
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 130])
def test_the_kernel_takes_any_row_length(tokens):
    compare([[tokens], [max(1, tokens // 2)]], tokens, 4, 2, 32, torch.bfloat16, native_attention)


@needs_kernel
def test_the_kernel_is_nearer_to_the_twin_than_the_blocks_are_and_repeats_itself():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 300, heads, 32).bfloat16() for heads in (4, 2, 2))
    context = AttentionContext(document_ids([[200, 100], [300]], 300))
    twin = gradients(reference_attention, *(x.float() for x in (q, k, v)), context, 1.0)
    kernel, blocks = (gradients(f, q, k, v, context, 1.0) for f in (native_attention, block_attention))
    for a, b, expected in zip(kernel, blocks, twin, strict=True):
        assert (a.float() - expected).norm() <= (b.float() - expected).norm()
    again = gradients(native_attention, q, k, v, context, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(kernel, again, strict=True))


@needs_kernel
def test_the_kernel_serves_bfloat16_and_can_be_switched_off(monkeypatch):
    assert attention.native_serves(torch.zeros(1, 1, 1, 32, dtype=torch.bfloat16))
    assert not attention.native_serves(torch.zeros(1, 1, 1, 32))
    assert not attention.native_serves(torch.zeros(1, 1, 1, 24, dtype=torch.bfloat16))
    monkeypatch.setenv("HERD_NATIVE", "0")
    library.cache_clear()
    assert not attention.native_serves(torch.zeros(1, 1, 1, 32, dtype=torch.bfloat16))
    monkeypatch.undo()
    library.cache_clear()


def test_without_a_compiler_there_is_no_kernel_and_no_error(monkeypatch, tmp_path):
    library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert library("native_attention") is None
    library.cache_clear()
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library("native_attention") is None
    library.cache_clear()
