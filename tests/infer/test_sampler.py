"""Tokens are drawn from the distribution that the settings describe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from herd.infer.sampler import SamplingRows, log_probabilities, sample, stream_seed, uniforms

VOCABULARY = 300


def rows(count: int, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> SamplingRows:
    return SamplingRows(
        torch.full((count,), float(temperature)),
        torch.full((count,), top_k),
        torch.full((count,), float(top_p)),
        torch.full((count,), float(min_p)),
    )


def some_logits(spread: float = 2.0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)) * spread


def reference(logits: torch.Tensor, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> torch.Tensor:
    """The distribution over the vocabulary, written out: temperature, top-k, top-p, min-p."""
    p = (logits.double() / temperature).softmax(0)
    order = p.argsort(descending=True)
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = p[order].cumsum(0) - p[order]
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 5},
    {"top_k": 64},
    {"top_k": 100, "top_p": 0.95},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1e-4, "temperature": 2.0},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
    {"top_k": 10_000, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_what_is_forbidden_is_not_drawn_by_the_last_digit_of_a_sum(settings):
    """The largest random number there is, and few tokens whose probabilities add up to a little less than 1."""
    count = 2000
    logits = torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    allowed = torch.rand(count, VOCABULARY, generator=torch.Generator().manual_seed(2)) < 0.1
    tokens = sample(logits.masked_fill(~allowed, -torch.inf), rows(count, **settings), torch.full((count,), 1 - 2**-24))
    assert allowed.gather(1, tokens[:, None]).all()


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_evenly_spread_uniforms_reproduce_the_reference_distribution(settings):
    count = 20_000
    logits = some_logits().expand(count, -1)
    even = (torch.arange(count) + 0.5) / count
    drawn = sample(logits, rows(count, **settings), even)
    frequency = torch.bincount(drawn, minlength=VOCABULARY).double() / count
    expected = reference(some_logits(), **settings)
    assert (frequency - expected).abs().max() < 2 / count + 2e-5
    assert set(drawn.tolist()) <= set(expected.nonzero().flatten().tolist())


def test_temperature_zero_takes_the_likeliest_token_beside_rows_that_are_drawn():
    logits = torch.stack([some_logits(), some_logits().flip(0), some_logits() * 0])
    settings = SamplingRows(
        torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 3, 0]), torch.tensor([0.5, 1.0, 1.0]), torch.zeros(3)
    )
    drawn = sample(logits, settings, torch.tensor([0.9, 0.9, 0.999]))
    assert drawn[:2].tolist() == logits[:2].argmax(-1).tolist()


def test_a_row_draws_the_same_token_whatever_its_neighbours_are():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 5_000, generator=generator) * torch.linspace(0.1, 5, 40)[:, None]
    spread = SamplingRows(
        torch.linspace(0, 2, 40),
        torch.arange(40) * 7 % 90,
        torch.linspace(0.3, 1, 40),
        torch.linspace(0, 0.01, 40),
    )
    at = torch.rand(40, generator=generator)
    together = sample(logits, spread, at)
    alone = [
        int(sample(logits[n : n + 1], spread.select(torch.tensor([n])), at[n : n + 1])) for n in range(len(logits))
    ]
    assert together.tolist() == alone


def test_extreme_logits_and_temperatures_still_give_a_token():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 3.0, -torch.inf], [0.0, 0.0, 0.0]])
    for temperature in (1e-30, 1e-3, 1.0, 1e6):
        drawn = sample(logits, rows(3, temperature=temperature, top_p=0.9), torch.tensor([0.0, 0.99999, 0.5]))
        assert drawn[1] == 1 and int(drawn.min()) >= 0 and int(drawn.max()) < 3


def test_uniforms_are_even_independent_and_repeatable():
    seeds = np.full(100_000, stream_seed(7, 0), dtype=np.uint64)
    counters = np.arange(100_000, dtype=np.uint64)
    values = uniforms(seeds, counters)
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    assert np.abs(np.histogram(values, 20, (0, 1))[0] / 5_000 - 1).max() < 0.06
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert (values == uniforms(seeds, counters)).all()
    other = uniforms(np.full(100_000, stream_seed(7, 1), dtype=np.uint64), counters)
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.02


def test_neighbouring_seeds_and_indices_give_unrelated_streams():
    streams = {stream_seed(seed, index) for seed in range(-50, 50) for index in range(50)}
    assert len(streams) == 5_000 and all(0 <= stream < 2**64 for stream in streams)


def test_log_probabilities_are_the_models_own():
    logits = torch.stack([some_logits(), some_logits().flip(0)])
    found = log_probabilities(logits, [3, 5], [0, 2])
    expected = logits.log_softmax(-1)
    assert found[0].logprob == pytest.approx(float(expected[0, 3])) and found[0].top == ()
    likeliest = expected[1].topk(2)
    assert [token for token, _ in found[1].top] == likeliest.indices.tolist()
    assert [logprob for _, logprob in found[1].top] == pytest.approx(likeliest.values.tolist())
