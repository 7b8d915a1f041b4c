"""Compare: a forecast with the run that it was written for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.errors import CheckpointError, DataError
from herd.log import amount, say
from herd.run import atomic_write, open_run, read_manifest
from herd.scaling.points import Point, collect
from herd.scaling.record import points_from, read_record, sha256_of

_SAME_BUDGET = 0.05  # of the FLOPs


@settings
class CompareSettings:
    """A forecast and the runs of its budget."""

    forecast: Path
    """Run folder of `herd scaling predict`."""
    runs: list[Path]
    """The held-out runs: run folders of `herd pretrain`, or folders of them; the best of them is compared."""
    fit: Path
    """Run folder of `herd scaling fit` that the forecast came from."""
    out: Path
    """Run folder to write."""


def run(settings: CompareSettings) -> Path:
    """Write `comparison.json`: predicted, measured, and how far they are apart.

    Raises:
        DataError: the runs have other data or another budget, or the law was fitted to them.
        CheckpointError: the forecast was edited.
    """
    inputs: dict[str, Any] = {"forecast": settings.forecast, "runs": settings.runs, "fit": settings.fit}
    with open_run(settings.out, stage="scaling compare", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        predicted = _forecast(settings.forecast)
        held_out = collect(settings.runs, predicted["metric"])
        for name, why in held_out.left_out.items():
            say(f"  left out: {name}: {why}")
        best = min(held_out.points, key=lambda point: point.loss)
        _check(predicted, held_out.made_of, best, read_record(settings.fit))
        began = _began(next(folder for folder in held_out.folders if folder.name == best.name))
        rows = _rows(predicted, best)
        before = predicted["written"] <= began  # in whole seconds; a story writes it first
        result = {"run": best.name, "before": before, "written": predicted["written"], "began": began, "rows": rows}
        atomic_write(run.path / "comparison.json", json.dumps(result, indent=1))
        for row in rows:
            within = {None: "", True: ", within its interval", False: ", outside its interval"}[row["within"]]
            values = f"predicted {row['predicted']:.4g}, measured {row['measured']:.4g}"
            say(f"  {row['what']}: {values} ({row['error']:+.2%}{within})")
        say(
            f"  {best.name}: {amount(best.parameters)} parameters on {amount(best.tokens)} tokens; the forecast "
            f"optimum was {amount(predicted['parameters']['value'])} on {amount(predicted['tokens']['value'])}"
        )
        if not before:
            say(f"  not a prediction: the run began {began}, the forecast was written {predicted['written']}")
        figures = {f"{row['what']}_error": round(row["error"], 5) for row in rows}
        run.finish(figures | {"before": before})
    return run.path


def _forecast(path: Path) -> dict[str, Any]:
    try:
        forecast: dict[str, Any] = json.loads((path / "forecast.json").read_text(encoding="utf-8"))
        recorded = read_manifest(path)["figures"]["sha256"]
    except (OSError, ValueError, KeyError):
        raise DataError(f"{path}: expected a finished run folder of `herd scaling predict`") from None
    if not recorded == forecast["sha256"] == sha256_of(forecast):
        raise CheckpointError(
            f"{path}/forecast.json was edited after it was written: its hash is not the one of run.json"
        )
    if "metric" not in forecast:
        raise DataError(f"{path}: this forecast came from a law of tokens alone; it has no loss to compare")
    return forecast


def _check(predicted: dict[str, Any], made_of: dict[str, Any], best: Point, fit: dict[str, Any]) -> None:
    if different := [key for key, value in predicted["made_of"].items() if made_of[key] != value]:
        raise DataError(
            f"{best.name} and the runs that the law was fitted to differ in {' and '.join(different)}: their losses "
            "cannot be compared"
        )
    if best.sha256 in {point.sha256 for point in points_from(fit["runs"])}:
        raise DataError(f"{best.name} is one of the runs that the law was fitted to: nothing was held out")
    if abs(best.flops / predicted["flops"] - 1) > _SAME_BUDGET:
        raise DataError(
            f"{best.name} took {best.flops:.4g} FLOPs, and the forecast is for {predicted['flops']:.4g}: make a new one"
        )


def _rows(predicted: dict[str, Any], best: Point) -> list[dict[str, Any]]:
    rows = [_row("loss", predicted["loss"], best.loss)]
    if "loss_with_fitted_floor" in predicted:
        rows.append(_row("loss_with_fitted_floor", predicted["loss_with_fitted_floor"], best.loss))
    for answer in predicted["answers"]:
        if answer["task"] in best.answers:
            nats, accuracy = best.answers[answer["task"]]
            rows.append(_row(f"{answer['task']} nats_per_character", answer["nats_per_character"], nats))
            if "accuracy" in answer:
                rows.append(_row(f"{answer['task']} accuracy", answer["accuracy"], accuracy))
    return rows


def _row(what: str, entry: dict[str, float], measured: float) -> dict[str, Any]:
    within = entry["low"] <= measured <= entry["high"] if "low" in entry else None
    error = entry["value"] / measured - 1 if measured else float("nan")
    return {"what": what, "predicted": entry["value"], "measured": measured, "error": error, "within": within}


def _began(folder: Path) -> str:
    """When a run was first opened."""
    began: str = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["time"]
    return began
