"""Figures one may trust: means with their intervals, and differences over the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval and standard error."""

    value: float
    low: float
    high: float
    stderr: float
    n: int


def bootstrap(values: Sequence[float], *, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean of `values` and its 95 % percentile interval over resamples with replacement.

    For a paired comparison give the differences: the second system is better where `low > 0`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0)
    generator = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // array.size)  # rows of indices held at once
    means = np.concatenate(
        [
            array[generator.integers(array.size, size=(min(chunk, resamples - start), array.size))].mean(axis=1)
            for start in range(0, resamples, chunk)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), float(means.std()), int(array.size))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of `ours - theirs` over the same questions, with its 95 % interval."""
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed=seed)
