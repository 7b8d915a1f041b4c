"""Intervals that cover what they say, and paired differences."""

import numpy as np
import pytest

from herd.evals import statistics


def test_the_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(1)
    samples = generator.beta(0.5, 1.0, size=(400, 60))  # skewed and bounded, like F1
    intervals = [statistics.bootstrap(sample, resamples=500, seed=index) for index, sample in enumerate(samples)]
    covered = np.mean([interval.low <= 1 / 3 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_the_bootstrap_is_deterministic_and_knows_the_mean_and_its_error():
    values = np.random.default_rng(2).normal(size=500)
    first, second = statistics.bootstrap(values), statistics.bootstrap(values)
    assert first == second
    assert first.value == pytest.approx(values.mean())
    assert first.stderr == pytest.approx(values.std() / np.sqrt(500), rel=0.1)
    assert statistics.bootstrap([]).n == 0


def test_a_paired_comparison_sees_a_small_difference_that_overlapping_intervals_hide():
    generator = np.random.default_rng(3)
    base = generator.uniform(size=200)
    better = np.clip(base + 0.03, 0, 1)
    assert statistics.bootstrap(better).low < statistics.bootstrap(base).high
    assert statistics.paired_difference(better, base).low > 0
