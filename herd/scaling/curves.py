"""Curves through a few points: parabolas, power laws, and a robust fit of any function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from herd.errors import DataError


@dataclass(frozen=True)
class Parabola:
    """y = curvature (x - lowest)^2 + least, through points by least squares."""

    curvature: float
    lowest: float  # the x of the minimum
    least: float  # the y there

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.curvature * (x - self.lowest) ** 2 + self.least


@dataclass(frozen=True)
class Power:
    """y = factor x^exponent."""

    factor: float
    exponent: float

    def __call__(self, x: float) -> float:
        return self.factor * x**self.exponent

    def inverse(self, y: float) -> float:
        """The x that gives y."""
        return float((y / self.factor) ** (1 / self.exponent))


def parabola(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Parabola:
    """The least-squares parabola through points with at least three distinct x.

    Raises:
        DataError: fewer points, no minimum, or a minimum outside the range of the points.
    """
    at = np.asarray(x, float)
    if len(set(at.tolist())) < 3:
        raise DataError(f"{len(set(at.tolist()))} sizes, and a parabola needs three")
    middle = at.mean()  # centred for precision
    a, b, c = np.polyfit(at - middle, np.asarray(y, float), 2)
    if a <= 0:
        raise DataError(
            "not convex: the loss is lower at the ends than in the middle; a run is mis-tuned, or the sizes are too "
            "close together"
        )
    lowest = middle - b / (2 * a)
    if not at.min() <= lowest <= at.max():
        side = "fewest" if lowest < at.min() else "most"
        raise DataError(f"its minimum is outside the range of the runs, towards the {side} tokens or parameters")
    return Parabola(float(a), float(lowest), float(c - b * b / (4 * a)))


def power(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Power:
    """The power law through points, by least squares of the logarithms; constant if all x are equal."""
    at, height = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    if np.ptp(at) < 1e-9:
        return Power(float(np.exp(height.mean())), 0.0)
    slope, start = np.polyfit(at, height, 1)
    return Power(float(math.exp(start)), float(slope))


def huber_fit(
    residuals: Callable[[np.ndarray], np.ndarray], starts: Sequence[Sequence[float]], delta: float
) -> tuple[np.ndarray, float]:
    """The parameters with the lowest Huber loss of their residuals, and that loss; the best of several starts.

    Levenberg-Marquardt with iteratively reweighted residuals.
    """
    best, least = np.asarray(starts[0], float), math.inf
    for start in starts:
        parameters, loss = _descend(residuals, np.asarray(start, float), delta)
        if loss < least:
            best, least = parameters, loss
    return best, least


def _descend(residuals: Callable[[np.ndarray], np.ndarray], at: np.ndarray, delta: float) -> tuple[np.ndarray, float]:
    damping, r = 1e-2, residuals(at)
    loss = _huber(r, delta)
    for _ in range(200):
        slopes = np.stack([(residuals(at + step) - r) / step.max() for step in np.eye(len(at)) * 1e-6], axis=1)
        weights = np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))[:, None]
        normal, gradient = slopes.T @ (weights * slopes), slopes.T @ (weights[:, 0] * r)
        scale = np.diag(normal.diagonal() + 1e-12)
        move = np.linalg.lstsq(normal + damping * scale, -gradient, rcond=None)[0]
        moved = residuals(at + move)
        after = _huber(moved, delta)
        if np.isfinite(after) and after < loss:
            done = loss - after < 1e-12 * (loss + 1e-30)
            at, r, loss, damping = at + move, moved, after, max(damping / 3, 1e-9)
            if done:
                break
        else:
            damping *= 4
            if damping > 1e9:
                break
    return at, loss


def _huber(r: np.ndarray, delta: float) -> float:
    size = np.abs(r)
    return float(np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta)).sum())
