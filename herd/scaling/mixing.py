"""Which mixture of sources to train on: a regression over small runs with different mixtures.

The loss on each held-out text is a floor plus an exponential of the sources' shares, so that a little of a new source
is worth more than the last bit of a large one.

Source: Ye et al. 2024 (arXiv 2403.16952), data mixing laws; the paper's section 3.1.2 for the method as a whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herd.errors import ConfigError, DataError
from herd.scaling.law import interval
from herd.scaling.points import Point

_FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9)  # of the lowest loss
_TRIED = 20_000  # mixtures


@dataclass(frozen=True)
class Regression:
    """loss = floor + exp(slopes . shares) for each held-out text, and their mean under `weights`."""

    floors: np.ndarray  # (texts,)
    slopes: np.ndarray  # (texts, sources)
    weights: np.ndarray  # (texts,), sum 1

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        """(N, sources) -> (N,)"""
        return (self.floors + np.exp(shares @ self.slopes.T)) @ self.weights


@dataclass(frozen=True)
class Mixture:
    """Shares by source, and the regression's prediction for them with the 95 % interval of a bootstrap."""

    shares: dict[str, float]
    loss: tuple[float, float, float]
    ends: dict[str, tuple[float, float]]  # intervals of the shares
    gain: tuple[float, float, float]  # its loss minus that of the recommended mixture


@dataclass(frozen=True)
class Recommendation:
    """The mixture with the lowest predicted loss, beside reference mixtures."""

    recommended: Mixture
    others: dict[str, Mixture]
    fitted: list[float]  # of each run
    measured: list[float]
    notes: list[str]


def recommend(
    points: Sequence[Point],
    others: Mapping[str, Mapping[str, float]],
    *,
    weights: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Recommendation:
    """The best mixture, beside `others`; `weights` are those of the held-out texts, `most` the largest shares.

    Raises:
        DataError: too few mixtures, or a weight for an unknown text.
    """
    sources = sorted(points[0].shares)
    texts = sorted(points[0].heldout)
    if unknown := set(weights or {}) - set(texts):
        raise DataError(f"weights: `{min(unknown)}` is not a held-out text; known: {', '.join(texts)}")
    shares = np.array([[point.shares[name] for name in sources] for point in points])
    distinct = len({tuple(row) for row in shares.round(4).tolist()})
    if distinct < len(sources) + 2:
        raise DataError(
            f"{distinct} different mixtures of {len(sources)} sources: the regression has {len(sources)} slopes and a "
            f"floor for each text, and needs {len(sources) + 2} or more"
        )
    losses = np.array([[point.heldout[name] for name in texts] for point in points])
    weigh = np.array([(weights or dict.fromkeys(texts, 1.0)).get(name, 0.0) for name in texts])
    weigh = weigh / weigh.sum()
    law = _fitted(shares, losses, weigh)
    random = np.random.default_rng(seed)
    tried = _tried(len(sources), np.array([(most or {}).get(name, 1.0) for name in sources]), random)
    best = tried[law(tried).argmin()]
    smooth = law.floors + np.exp(shares @ law.slopes.T)
    widened = math.sqrt(len(points) / max(len(points) - len(sources) - 1, 1))
    off = (losses - smooth) * widened
    laws = [_fitted(shares, smooth + off[random.integers(0, len(off), len(off))], weigh) for _ in range(draws)]
    bests = [tried[one(tried).argmin()] for one in laws]
    chosen = {name: np.array([mixture.get(one, 0.0) for one in sources]) for name, mixture in others.items()}
    made = {
        name: _mixture(sources, at, law, laws, best, bests if name == "recommended" else None)
        for name, at in {"recommended": best, **chosen}.items()
    }
    notes = []
    near = shares.min(axis=0) - 0.05, shares.max(axis=0) + 0.05
    if outside := [name for name, share, low, high in zip(sources, best, *near) if not low <= share <= high]:
        notes.append(
            f"extrapolated shares: {', '.join(outside)}; run a mixture near the recommended one before you trust it"
        )
    if made["uniform"].gain[1] <= 0:
        notes.append("its gain over the uniform mixture is within the noise of the runs")
    whole = (losses @ weigh).tolist()
    return Recommendation(made.pop("recommended"), made, law(shares).tolist(), whole, notes)


def recommended(folder: Path, sources: Mapping[str, str], tokenizer: str) -> dict[str, float]:
    """The recommended shares in a run folder of `herd scaling mix`; `sources` must have the content it was fitted to.

    Raises:
        DataError: it is not such a folder.
        ConfigError: a source or the tokenizer has changed.
    """
    try:
        record = json.loads((folder / "mix.json").read_text(encoding="utf-8"))
        shares: dict[str, float] = record["recommended"]["shares"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder}: expected a finished run folder of `herd scaling mix`") from None
    known = {name: one for name, one in sources.items() if name in record["sources"]}
    if changed := [name for name, digest in record["sources"].items() if known.get(name) != digest]:
        raise ConfigError(
            f"{folder}: its mixture was fitted to other content of {', '.join(changed)}: run the small runs again for "
            "these sources"
        )
    if record["tokenizer"] != tokenizer:
        raise ConfigError(f"{folder}: its mixture was fitted with another tokenizer; run the small runs again")
    return {name: share for name, share in shares.items() if share > 0}


def _mixture(
    sources: Sequence[str],
    at: np.ndarray,
    law: Regression,
    laws: Sequence[Regression],
    best: np.ndarray,
    bests: Sequence[np.ndarray] | None,
) -> Mixture:
    losses = [float(one(at[None])[0]) for one in laws]
    gains = [float(one(at[None])[0] - one(best[None])[0]) for one in laws]
    ends = {}
    if bests is not None:
        ends = {name: interval([one[place] for one in bests]) or (0.0, 1.0) for place, name in enumerate(sources)}
    loss, gain = float(law(at[None])[0]), float(law(at[None])[0] - law(best[None])[0])
    nothing = (math.nan, math.nan)
    return Mixture(
        {name: round(float(share), 4) for name, share in zip(sources, at)},
        (loss, *(interval(losses) or nothing)),
        ends,
        (gain, *(interval(gains) or nothing)),
    )


def _fitted(shares: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> Regression:
    floors, slopes = [], []
    for column in losses.T:
        tried = []
        for floor in _FLOORS:
            height = column - floor * column.min()
            slope = np.linalg.lstsq(shares, np.log(np.maximum(height, 1e-6)), rcond=None)[0]
            off = floor * column.min() + np.exp(shares @ slope) - column
            tried.append((float(off @ off), floor * column.min(), slope))
        _, floor, slope = min(tried, key=lambda one: one[0])
        floors.append(floor)
        slopes.append(slope)
    return Regression(np.array(floors), np.stack(slopes), weights)


def _tried(count: int, most: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mixtures over the whole simplex, with edges and corners; no source above its largest share in `most`.

    Raises:
        DataError: no mixture satisfies `most`.
    """
    inner = random.dirichlet(np.ones(count), _TRIED // 2)
    edges = random.dirichlet(np.full(count, 0.3), _TRIED // 2)
    mixtures = np.concatenate([inner, edges, np.eye(count), np.full((1, count), 1 / count)])
    mixtures = mixtures[(mixtures <= most + 1e-9).all(axis=1)]
    if not len(mixtures):
        raise DataError("no mixture keeps every source within max_epochs: plan fewer tokens, or raise max_epochs")
    return mixtures
