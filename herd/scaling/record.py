"""A fit on disk: `fit.json`, read by `herd scaling predict`, the report and the size dial."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.errors import DataError
from herd.scaling.curves import Power, power
from herd.scaling.law import Budget, Fit, Joint, Law, LossLaw, interval
from herd.scaling.points import Collection, Point

FILE = "fit.json"


def to_record(fit: Fit, collection: Collection, metric: str, also: Sequence[Point]) -> dict[str, Any]:
    """A fit as JSON."""
    law, draws = fit.law, fit.draws
    best = [min(one.points, key=lambda point: point.loss) for one in fit.budgets if not one.why]
    return {
        "metric": metric,
        "made_of": collection.made_of,
        "runs": [asdict(point) for point in collection.points],
        "also": [asdict(point) for point in also],
        "left_out": collection.left_out,
        "diverged": collection.diverged,
        "budgets": [_budget(one) for one in fit.budgets],
        "law": _law(law),
        "intervals": {
            "tokens.exponent": interval([one.tokens.exponent for one in draws]),
            "parameters.exponent": interval([one.parameters.exponent for one in draws]),
            "loss.exponent": interval([one.loss.power.exponent for one in draws]),
        },
        "joint": asdict(fit.joint) if fit.joint else None,
        "joint_why": fit.joint_why,
        "noise": fit.noise,
        "dial": {  # what the best run of each budget was trained with
            "learning_rate": asdict(_held([one.parameters for one in best], [one.learning_rate for one in best])),
            "batch_tokens": asdict(_held([one.flops for one in best], [one.batch_tokens for one in best])),
        },
        "notes": fit.notes,
        "draws": [_law(one) for one in draws],
    }


def read_record(path: Path) -> dict[str, Any]:
    """The record of a run folder of `herd scaling fit`.

    Raises:
        DataError: it is not such a folder.
    """
    try:
        record: dict[str, Any] = json.loads((path / FILE).read_text(encoding="utf-8"))
        record["law"]["tokens"]["exponent"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: expected a finished run folder of `herd scaling fit`, which holds {FILE}") from None
    return record


def law_from(record: Mapping[str, Any]) -> Law:
    """The law in a record of `to_record`."""

    def loss(one: Mapping[str, Any] | None) -> LossLaw | None:
        return None if one is None else LossLaw(one["irreducible"], Power(**one["power"]))

    fixed = loss(record["loss"])
    assert fixed is not None
    return Law(Power(**record["tokens"]), Power(**record["parameters"]), fixed, loss(record["fitted"]))


def joint_from(record: Mapping[str, Any] | None) -> Joint | None:
    """The joint fit in a record of `to_record`."""
    return None if record is None else Joint(**record)


def points_from(records: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points in a record of `to_record`."""
    return [Point(**dict(one) | {"answers": {k: tuple(v) for k, v in one["answers"].items()}}) for one in records]


def sha256_of(forecast: dict[str, Any]) -> str:
    """The hash of a forecast without its own `sha256` entry."""
    text = json.dumps({name: one for name, one in forecast.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _law(law: Law) -> dict[str, Any]:
    return asdict(law)


def _budget(one: Budget) -> dict[str, Any]:
    return {
        "flops": one.flops,
        "runs": [point.name for point in one.points],
        "curve": asdict(one.over_tokens) if one.over_tokens else None,
        "tokens": one.tokens if one.over_tokens else None,
        "parameters": one.parameters if one.over_parameters else None,
        "loss": one.loss if one.over_tokens else None,
        "residuals": one.residuals().tolist(),
        "why": one.why,
    }


def _held(x: Sequence[float], y: Sequence[float]) -> Power:
    """A power law through a setting of the best runs; constant if they all had the same value."""
    return Power(float(y[0]), 0.0) if len(set(y)) == 1 else power(x, y)
