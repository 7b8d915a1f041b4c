"""What a source is worth: annealing with it compared to annealing without it, seed by seed.

Source: The Llama 3 Herd of Models, section 3.1.3: a half-trained model, the rate linearly to 0, 30 % of the new source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from herd.errors import DataError
from herd.run import read_manifest

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 %, by degrees of freedom
_HIGHER = ("accuracy", "copied", "chosen", "exact", "f1", "mass")


@dataclass(frozen=True)
class Annealed:
    """One annealing run."""

    name: str
    seed: int
    start: str  # the content of the checkpoint it began with
    tokens: float
    shares: dict[str, float]
    figures: dict[str, float]


@dataclass(frozen=True)
class Worth:
    """The gain of an evaluation from a source (positive is better), with its 95 % interval over seeds."""

    source: str
    evaluation: str
    gain: float
    low: float  # NaN for a single seed
    high: float
    without: float
    seeds: int


def read_annealed(folder: Path) -> Annealed:
    """An annealing run.

    Raises:
        DataError: it is not a finished pre-training run that began from a checkpoint.
    """
    manifest = read_manifest(folder)
    sources = folder / "sources.json"
    if manifest["state"] != "finished" or "checkpoint" not in manifest["inputs"] or not sources.exists():
        raise DataError(f"{folder}: expected a finished run of `herd pretrain` that began from a checkpoint")
    record = json.loads(sources.read_text(encoding="utf-8"))
    shares = {name: one["share"] for name, one in record["sources"].items()}
    heldout = {f"{name} bits_per_byte": v for name, v in record.get("heldout", {}).get("bits_per_byte", {}).items()}
    usual = {"loss", "tokens", "tokens_per_second", "mfu", "parameters", "flops", "heldout_bits_per_byte"}
    watched = {name: v for name, v in manifest["figures"].items() if name not in usual and isinstance(v, int | float)}
    return Annealed(
        name=folder.name,
        seed=manifest["settings"]["seed"],
        start=manifest["inputs"]["checkpoint"],
        tokens=manifest["figures"]["tokens"],
        shares=shares,
        figures=heldout | watched,
    )


def worth(defaults: Sequence[Annealed], probes: Sequence[Annealed]) -> list[Worth]:
    """The gain of each probe's new source on each evaluation, over the default mix with the same seed.

    Raises:
        DataError: the runs began from different checkpoints or have different lengths, or no default run has a probe's
            seed.
    """
    starts, lengths = {one.start for one in (*defaults, *probes)}, {one.tokens for one in (*defaults, *probes)}
    if len(starts) > 1:
        raise DataError("the runs began from different checkpoints: what a source adds to each cannot be compared")
    if len(lengths) > 1:
        raise DataError(
            f"the runs are of different lengths ({', '.join(f'{one:,.0f}' for one in sorted(lengths))} tokens)"
        )
    by_seed = {one.seed: one for one in defaults}
    differences: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for probe in probes:
        if probe.seed not in by_seed:
            raise DataError(f"{probe.name}: no default run has its seed ({probe.seed})")
        without = by_seed[probe.seed]
        source = _new_source(without.shares, probe.shares)
        for name, value in probe.figures.items():
            if name in without.figures:
                sign = 1 if name.replace("_", " ").split()[-1] in _HIGHER else -1
                differences.setdefault((source, name), []).append(
                    (sign * (value - without.figures[name]), without.figures[name])
                )
    return [_over_seeds(source, name, pairs) for (source, name), pairs in differences.items()]


def _new_source(default: Mapping[str, float], probe: Mapping[str, float]) -> str:
    more = {name: share - default.get(name, 0.0) for name, share in probe.items()}
    return max(more, key=lambda name: more[name])


def _over_seeds(source: str, name: str, pairs: Sequence[tuple[float, float]]) -> Worth:
    gains = [gain for gain, _ in pairs]
    half = math.nan
    if len(gains) > 1:
        half = _STUDENT[min(len(gains) - 2, len(_STUDENT) - 1)] * stdev(gains) / math.sqrt(len(gains))
    mean = fmean(gains)
    return Worth(source, name, mean, mean - half, mean + half, fmean(one for _, one in pairs), len(gains))


def with_verdicts(rows: Sequence[Worth]) -> list[dict[str, Any]]:
    """The rows, each with its verdict."""

    def says(row: Worth) -> str:
        if math.isnan(row.low):
            return "one seed: no interval"
        return "helps" if row.low > 0 else "harms" if row.high < 0 else "no difference shown"

    return [vars(row) | {"says": says(row)} for row in rows]
