"""Figures one may trust: means with their intervals, and differences over the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

_Z = 1.959964
_POWER = 0.841621  # the normal quantile of 80 %
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764)  # for 1 to 4 degrees of freedom


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and standard error."""

    value: float
    low: float
    high: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """How one system differs from another on the same questions."""

    difference: Interval
    p: float  # of a paired test: how often chance alone would show as much
    detectable: float  # the smallest true difference that as many questions would show in 80 of 100 cases

    @property
    def word(self) -> str:
        """`better`, `worse`, or that no difference is shown, which is not that there is none."""
        return "better" if self.difference.low > 0 else "worse" if self.difference.high < 0 else "no difference shown"


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t. Source: Fisher and Cornish 1960, to 0.002 from 5 degrees of freedom on."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, v = _Z, freedom
    first = (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return z + first + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def summary(
    values: Sequence[float], groups: Sequence[str] | None = None, kinds: Sequence[str] | None = None
) -> Interval:
    """A mean with the interval that fits: of the means of `kinds`, over whole groups, Wilson's of yes and no, or the
    bootstrap's."""
    if kinds is not None and len(set(kinds)) > 1:
        found = of_kinds(values, kinds)
    elif groups is not None and 1 < len(set(groups)) < len(values):
        found = clustered(values, groups)
    else:
        found = wilson(values) if _is_binary(values) else bootstrap(values)
    if len(values) and min(values) >= 0 and max(values) <= 1:  # so is what they are drawn from
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    return found


def _is_binary(values: Sequence[float]) -> bool:
    return len(values) > 0 and set(values) <= {0.0, 1.0}


_FEWEST = 6  # signs of which all being alike has a chance below 5 %: 2 / 2 ** 6


def as_published(value: float, n: int) -> float:
    """Half the 95 % interval as the paper gives it, which takes all questions for independent.

    Source: Llama 3, section 5.1.1: 1.96 sqrt(S (1 - S) / N).
    """
    return 1.96 * math.sqrt(max(value * (1 - value), 0.0) / n) if n else math.nan


def wilson(values: Sequence[float]) -> Interval:
    """The share of ones among zeros and ones, with Wilson's 95 % interval.

    Source: Wilson 1927; unlike value +- 1.96 stderr it never leaves 0 to 1, and is not empty at 0 or 1.
    """
    n, share = len(values), float(np.mean(values))
    low, high = _wilson(share, n, _Z)
    return Interval(share, low, high, math.sqrt(share * (1 - share) / n), n)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 0.0 if share <= 0 else max(middle - half, 0.0), 1.0 if share >= 1 else min(middle + half, 1.0)


def clustered(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """Mean of `values` whose groups (passages, subjects, languages) vary as wholes, with its 95 % interval.

    Student's interval over the groups' sums; of yes and no, Wilson's for as many independent questions as would vary
    as much. Source: Korn and Graubard 1998; Miller 2024 ("Adding Error Bars to Evals").
    """
    array = np.asarray(values, dtype=np.float64)
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    mean, n, num_groups = float(array.mean()), len(array), int(group.max()) + 1
    sums = np.bincount(group, array - mean)
    error = math.sqrt(num_groups / (num_groups - 1) * float(sums @ sums)) / n
    t = student(num_groups - 1)
    if not _is_binary(values):
        return Interval(mean, mean - t * error, mean + t * error, error, n)
    effective = mean * (1 - mean) / error**2 if error else num_groups
    low, high = _wilson(mean, min(max(effective, num_groups), n), t)
    return Interval(mean, low, high, error, n)


def of_kinds(values: Sequence[float], kinds: Sequence[str]) -> Interval:
    """The mean of the kinds' means, each kind's questions drawn for themselves, with its 95 % interval."""
    array = np.asarray(values, dtype=np.float64)
    _, kind = np.unique(np.asarray(kinds, dtype=str), return_inverse=True)
    sizes = np.bincount(kind)
    means = np.bincount(kind, array) / sizes
    if len(array) < 2 * len(sizes):  # too few of each to see how they vary within: the kinds are the sample
        found = wilson(means.tolist()) if _is_binary(means.tolist()) else bootstrap(means.tolist())
        return replace(found, n=len(array))
    spread = np.bincount(kind, (array - means[kind]) ** 2) / np.maximum(sizes - 1, 1) / sizes
    pooled = ((array - means[kind]) ** 2).sum() / max(len(array) - len(sizes), 1)
    spread = np.where(sizes > 1, spread, pooled)  # a kind of one question tells nothing of its own spread
    error, mean = math.sqrt(float(spread.sum())) / len(sizes), float(means.mean())
    t = student(max(len(array) - len(sizes), 1))
    if not _is_binary(values):
        return Interval(mean, mean - t * error, mean + t * error, error, len(array))
    effective = mean * (1 - mean) / error**2 if error else len(array)
    low, high = _wilson(mean, max(effective, 1.0), t)
    return Interval(mean, low, high, error, len(array))


def bootstrap(values: Sequence[float], *, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean of `values` and its 95 % percentile interval over resamples, widened as Student's is for few values.

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
    mean, n = float(array.mean()), int(array.size)
    wider = math.sqrt(n / (n - 1)) * student(n - 1) / _Z if n > 1 else 1.0
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, mean - (mean - low) * wider, mean + (high - mean) * wider, float(means.std()), n)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str] | None = None, *, seed: int = 0
) -> Interval:
    """Mean of `ours - theirs` over the same questions, with its 95 % interval; over whole groups where given.

    Where no question moved, the interval is what so many may hide: the share that would not have shown up once in 95 of
    100 cases (Clopper and Pearson 1934).
    """
    gain = np.asarray(ours) - np.asarray(theirs)
    if len(gain) and not gain.any():
        half = 1 - 0.05 ** (1 / (len(gain) if groups is None else len(set(groups))))
        return Interval(0.0, -half, half, 0.0, len(gain))
    if groups is not None and 1 < len(set(groups)) < len(gain):
        array = clustered([*gain.tolist()], groups)
        half = student(len(set(groups)) - 1) * array.stderr
        return Interval(array.value, array.value - half, array.value + half, array.stderr, array.n)
    return bootstrap(gain, seed=seed)


def compared(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str] | None = None, *, seed: int = 0
) -> Comparison:
    """Difference, paired test and smallest detectable difference of two systems on the same questions.

    Fewer than six questions that move the same way are no finding of the paired test, so that none is detectable below.
    """
    difference = paired_difference(ours, theirs, groups, seed=seed)
    gain = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if groups is not None:
        _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        gain = np.asarray(np.bincount(group, gain), dtype=np.float64)
    detectable = (_Z + _POWER) * difference.stderr
    if set(np.abs(gain).tolist()) <= {0.0, 1.0} and len(gain):
        detectable = max(detectable, _FEWEST / len(gain))
    return Comparison(difference, sign_test(gain, seed=seed), detectable)


def sign_test(gains: Sequence[float] | np.ndarray, *, draws: int = 10_000, seed: int = 0) -> float:
    """How often gains whose signs are tossed are as large in sum as these: the paired test of no difference.

    Where all gains are as large as one another this is McNemar's exact test, and is computed as that.
    """
    moved = np.asarray([gain for gain in gains if gain], dtype=np.float64)
    if not len(moved):
        return 1.0
    if np.ptp(np.abs(moved)) == 0:
        fewer = min(int((moved > 0).sum()), int((moved < 0).sum()))
        tail = sum(math.comb(len(moved), k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2 ** len(moved))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(moved)))
    as_large = np.abs(signs @ moved) >= abs(moved.sum()) - 1e-12
    return float((as_large.sum() + 1) / (draws + 1))


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Each test's q: the share of false findings among all tests that are at least as clear. At most 0.05 is a finding.

    Source: Benjamini and Hochberg 1995.
    """
    order = sorted(range(len(ps)), key=lambda place: -ps[place])
    found, least = [0.0] * len(ps), 1.0
    for rank, place in zip(range(len(ps), 0, -1), order):
        least = min(least, ps[place] * len(ps) / rank)
        found[place] = least
    return found
