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


def wilson(values: Sequence[float]) -> Interval:
    """The share of ones among zeros and ones, with Wilson's 95 % interval.

    Source: Wilson 1927; unlike value +- 1.96 stderr it never leaves 0 to 1, and is not empty at 0 or 1.
    """
    n, z = len(values), 1.959964
    share = float(np.mean(values))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0), math.sqrt(share * (1 - share) / n), n)


def clustered(values: Sequence[float], groups: Sequence[str], *, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean of `values` with its 95 % percentile interval over resamples of whole groups."""
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums, sizes = np.bincount(group, np.asarray(values, dtype=np.float64)), np.bincount(group)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
    means = drawn @ sums / (drawn @ sizes)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), float(means.std()), len(values))


def summary(values: Sequence[float], groups: Sequence[str] | None = None) -> Interval:
    """A mean with the interval that fits: over whole groups where given, Wilson's of yes and no, else the bootstrap."""
    if groups is not None and 1 < len(set(groups)) < len(values):
        return clustered(values, groups)
    if len(values) and set(values) <= {0.0, 1.0}:
        return wilson(values)
    return bootstrap(values)


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


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str] | None = None, *, seed: int = 0
) -> Interval:
    """Mean of `ours - theirs` over the same questions, with its 95 % interval; over whole groups where given."""
    gain = np.asarray(ours) - np.asarray(theirs)
    if groups is not None and 1 < len(set(groups)) < len(gain):
        return clustered(gain, groups, seed=seed)
    return bootstrap(gain, seed=seed)
