"""Benchmarks forecast in two steps: FLOPs -> nats per character of the right answer -> accuracy.

Source: The Llama 3 Herd of Models, section 3.2.1. The first step is a straight line over the logarithm of FLOPs through
the best model of each budget, the second a sigmoid through all models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.errors import DataError
from herd.scaling.curves import huber_fit
from herd.scaling.law import interval
from herd.scaling.points import Point

_FLAT = 0.05  # a smaller range of accuracies does not determine a sigmoid


@dataclass(frozen=True)
class Sigmoid:
    """accuracy = chance + (1 - chance) / (1 + exp((nats - middle) / width))."""

    chance: float
    middle: float
    width: float

    def __call__(self, nats: float | np.ndarray) -> Any:
        return self.chance + (1 - self.chance) / (1 + np.exp(np.clip((nats - self.middle) / self.width, -60, 60)))


@dataclass(frozen=True)
class Forecast:
    """The forecast of one task for a budget; each value with the 95 % interval of a bootstrap."""

    task: str
    nats: tuple[float, float, float]  # per character of the right answer: value, low, high
    accuracy: tuple[float, float, float] | None
    why: str = ""  # why there is no accuracy


def forecast(
    task: str, best: Sequence[Point], everyone: Sequence[Point], flops: float, *, chance: float, draws: int = 500
) -> Forecast:
    """The forecast of a task for a budget, from the `best` run of each budget and from `everyone` that was evaluated.

    Raises:
        DataError: fewer than three budgets were evaluated on the task.
    """
    first = [(math.log(point.flops), point.answers[task][0]) for point in best if task in point.answers]
    if len(first) < 3:
        raise DataError(f"{task}: {len(first)} budgets were evaluated on it; a line with an interval needs three")
    x, y = map(np.array, zip(*first, strict=True))
    at = math.log(flops)
    line = np.polyfit(x, y, 1)
    random = np.random.default_rng(0)
    spread = (y - np.polyval(line, x)) * math.sqrt(len(x) / (len(x) - 2))
    lines = [np.polyfit(x, np.polyval(line, x) + random.choice(spread, len(x)), 1) for _ in range(draws)]
    drawn = [max(0.0, float(np.polyval(one, at) + random.choice(spread))) for one in lines]
    nats = max(0.0, float(np.polyval(line, at)))
    ends = interval(drawn) or (math.nan, math.nan)
    second = [point.answers[task] for point in everyone if task in point.answers]
    pairs = np.array([pair for pair in second if math.isfinite(pair[1])])
    if len(pairs) < 4 or np.ptp(pairs[:, 1]) < _FLAT:
        reason = "their accuracies hardly differ" if len(pairs) >= 4 else f"only {len(pairs)} models were evaluated"
        return Forecast(
            task, (nats, *ends), None, f"{reason}, so accuracy cannot be forecast (add larger models with also=)"
        )
    curve = sigmoid(pairs[:, 0], pairs[:, 1], chance)
    off = pairs[:, 1] - curve(pairs[:, 0])
    reached = []
    for one in drawn[:200]:
        again = sigmoid(pairs[:, 0], curve(pairs[:, 0]) + random.choice(off, len(off)), chance, near=curve)
        reached.append(float(again(one)))
    low, high = interval(reached) or (math.nan, math.nan)
    return Forecast(task, (nats, *ends), (float(curve(nats)), low, high))


def sigmoid(nats: np.ndarray, accuracy: np.ndarray, chance: float, near: Sigmoid | None = None) -> Sigmoid:
    """The sigmoid through pairs of nats per character and accuracy, by a Huber loss; the search starts `near` one."""
    spread = max(float(np.ptp(nats)), 1e-6)

    def residuals(at: np.ndarray) -> np.ndarray:
        differences: np.ndarray = Sigmoid(chance, at[0], math.exp(min(max(at[1], -20.0), 20.0)))(nats) - accuracy
        return differences

    middles = (nats.min(), nats.mean(), nats.max())
    starts = [[middle, math.log(spread * width)] for middle in middles for width in (0.1, 0.5)]
    if near is not None:
        starts = [[near.middle, math.log(near.width)]]
    (middle, width), _ = huber_fit(residuals, starts, 0.05)
    return Sigmoid(chance, float(middle), math.exp(min(max(width, -20.0), 20.0)))
