"""What a corpus gave away of a benchmark, and what that was worth: the paper's contamination analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herd.data.ngrams import NgramIndex
from herd.errors import ConfigError
from herd.evals.task import Item
from herd.formats.vocabulary import open_tokenizer

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""Shares of an example's tokens above which it may count as contaminated."""

_FEWEST = 5  # examples on either side of a threshold


def overlaps(folder: Path, items: Sequence[Item]) -> list[float]:
    """The share of each question's tokens (with its choices or right answers) in an 8-gram of the indexed corpus.

    Raises:
        DataError: the folder holds no index.
        ConfigError: the index's tokenizer is not the one beside it.
    """
    index, tokenizer = NgramIndex(folder), open_tokenizer(folder / "tokenizer")
    if index.tokenizer != tokenizer.fingerprint:
        raise ConfigError(f"{folder}: the index was made with another tokenizer than the one beside it")
    texts = [" ".join([item.text, *(item.choices or item.right)]) for item in items]
    return [index.overlap(tokenizer.encode(text)) for text in texts]


def contamination(shares: Sequence[float], values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The threshold at which contaminated examples gain most, and what each model's score gains by them.

    The gain (EPG) is the score of all examples less that of the clean ones. Only gains whose 95 % interval lies above 0
    count; where there is none, `threshold` is None: no estimate can be had.

    Source: Llama 3, section 5.1.4 and table 15 (after Singh et al. 2024).
    """
    overlap = np.asarray(shares)
    best: dict[str, Any] = {"threshold": None, "contaminated": None, "n": len(shares), "gains": {}}
    most = 0.0
    for threshold in THRESHOLDS:
        dirty = overlap >= threshold
        if min(int(dirty.sum()), int((~dirty).sum())) < _FEWEST:
            continue
        gains = {name: _gain(np.asarray(found, dtype=np.float64), dirty) for name, found in values.items()}
        largest = max((gain["value"] for gain in gains.values() if gain["low"] > 0), default=0.0)
        if largest > most:
            most = largest
            best |= {"threshold": threshold, "contaminated": float(dirty.mean()), "gains": gains}
    return best | {"mean_overlap": float(overlap.mean())}


def _gain(values: np.ndarray, dirty: np.ndarray) -> dict[str, float]:
    apart = float(values[dirty].mean() - values[~dirty].mean())
    error = math.sqrt(sum(float(values[side].var(ddof=1)) / int(side.sum()) for side in (dirty, ~dirty)))
    share = float(dirty.mean())
    found = {"value": share * apart, "low": share * (apart - 1.96 * error), "high": share * (apart + 1.96 * error)}
    return found | {"clean": float(values[~dirty].mean()), "all": float(values.mean())}


def told(task: str, found: Mapping[str, Any]) -> str:
    """One line of it."""
    if found["threshold"] is None:
        return f"{task}: no significant gain at any threshold (mean overlap {found['mean_overlap']:.0%})"
    gains = ", ".join(
        f"{name} {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}; clean {gain['clean']:.3f})"
        for name, gain in found["gains"].items()
    )
    return f"{task}: {found['contaminated']:.0%} contaminated (threshold {found['threshold']}); gain by it: {gains}"
