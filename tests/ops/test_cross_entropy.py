"""Chunked cross entropy and log-probabilities against their twins."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from herd.ops import cross_entropy as ops
from herd.types import IGNORE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(ops.CHUNK_LOGITS, "cpu", 64 * 500)
    monkeypatch.setattr(ops, "MIN_CHUNK_TOKENS", 16)


def problem(dtype, tokens=301, width=32, vocabulary=500):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width) * 0.3).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,))
    return hidden, weight, labels


def wide(*tensors):
    return [x.detach().float().requires_grad_() for x in tensors]


def assert_close(got, expected, dtype):
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("vocabulary", [500, 512])  # the kernel takes multiples of 16
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_loss_and_gradients_equal_the_twin(dtype, vocabulary):
    hidden, weight, labels = problem(dtype, vocabulary=vocabulary)
    labels[::7] = IGNORE
    loss = ops.cross_entropy_sum(hidden, weight, labels)
    hidden32, weight32 = wide(hidden, weight)
    expected = ops.reference_cross_entropy_sum(hidden32, weight32, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=TOLERANCE[dtype] / 10, atol=0)
    got = torch.autograd.grad(loss * 0.5, (hidden, weight))
    for ours, theirs in zip(got, torch.autograd.grad(expected * 0.5, (hidden32, weight32)), strict=True):
        assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("label", [512, -1])
def test_a_label_outside_the_vocabulary_is_refused(label):
    hidden, weight, labels = problem(torch.bfloat16, vocabulary=512)
    labels[5] = label
    with pytest.raises(IndexError):
        ops.cross_entropy_sum(hidden, weight, labels)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_log_probabilities_and_their_gradients_equal_the_twin(dtype):
    hidden, weight, ids = problem(dtype)
    upstream = torch.randn(len(ids))
    got = ops.token_log_probs(hidden, weight, ids)
    hidden32, weight32 = wide(hidden, weight)
    expected = ops.reference_token_log_probs(hidden32, weight32, ids)
    assert_close(got, expected, dtype)
    ours = torch.autograd.grad((got * upstream).sum(), (hidden, weight))
    theirs = torch.autograd.grad((expected * upstream).sum(), (hidden32, weight32))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, dtype)


def test_the_loss_is_the_negative_sum_of_the_log_probabilities():
    hidden, weight, labels = problem(torch.float32)
    loss = ops.cross_entropy_sum(hidden, weight, labels)
    torch.testing.assert_close(loss, -ops.token_log_probs(hidden, weight, labels).sum())


def test_without_gradients_the_loss_is_float32_throughout():
    hidden, weight, labels = problem(torch.bfloat16)
    labels[::5] = IGNORE
    logits = (hidden @ weight.T).double()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    with torch.no_grad():
        torch.testing.assert_close(ops.cross_entropy_sum(hidden, weight, labels).double(), expected, rtol=1e-5, atol=0)


def test_a_batch_without_labels_costs_nothing_and_has_zero_gradients():
    hidden, weight, labels = problem(torch.float32)
    loss = ops.cross_entropy_sum(hidden, weight, torch.full_like(labels, IGNORE))
    loss.backward()
    assert loss == 0
    assert hidden.grad.abs().max() == 0 and weight.grad.abs().max() == 0


def test_leading_dimensions_are_kept():
    hidden, weight, ids = problem(torch.float32, tokens=300)
    grouped = ops.token_log_probs(hidden.view(3, 100, -1), weight, ids.view(3, 100))
    assert grouped.shape == (3, 100)
    torch.testing.assert_close(grouped.flatten(), ops.token_log_probs(hidden, weight, ids))


def test_no_chunk_of_logits_is_larger_than_stated():
    hidden, weight, _ = problem(torch.float32, tokens=1000)
    sizes = [logits.numel() for _, logits, _ in ops.chunks(hidden, weight)]
    assert max(sizes) <= 64 * 500 and sum(sizes) == 1000 * 500 and len(sizes) == 16


@pytest.mark.parametrize("function", [ops.cross_entropy_sum, ops.token_log_probs])
def test_a_frozen_weight_costs_no_matmul_for_its_gradient(function):
    hidden, weight, labels = problem(torch.float32)
    whole = FlopCounterMode(display=False)
    with whole:
        [learned, _] = torch.autograd.grad(function(hidden, weight, labels).sum(), (hidden, weight))
    weight.requires_grad_(False)
    frozen = FlopCounterMode(display=False)
    with frozen:
        [got] = torch.autograd.grad(function(hidden, weight, labels).sum(), [hidden])
    assert torch.equal(got, learned)
    assert whole.get_total_flops() - frozen.get_total_flops() == 2 * hidden.numel() * len(weight)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_log_probabilities_of_several_ids_at_each_place_equal_the_twin(dtype):
    hidden, weight, _ = problem(dtype)
    ids = torch.stack([torch.randperm(500)[:5] for _ in range(len(hidden))])
    factors = torch.randn(ids.shape)
    got = ops.token_log_probs(hidden, weight, ids)
    (got * factors).sum().backward()
    wide_hidden, wide_weight = wide(hidden, weight)
    expected = ops.reference_token_log_probs(wide_hidden, wide_weight, ids)
    (expected * factors).sum().backward()
    assert_close(got, expected, dtype)
    assert_close(hidden.grad, wide_hidden.grad, dtype)
    assert_close(weight.grad, wide_weight.grad, dtype)
