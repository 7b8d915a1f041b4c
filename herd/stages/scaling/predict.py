"""Predict: size, tokens, loss and benchmarks for a budget, recorded with a hash before anything is trained.

herd scaling predict fit=runs/fit flops=3e14 out=runs/forecast
herd scaling predict exponent=0.537 factor=0.299 flops=3.8e25      # the paper's own law of tokens
"""

from __future__ import annotations

import json
import math
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import settings
from herd.environment import now
from herd.errors import DataError
from herd.log import amount, say
from herd.run import atomic_write, fingerprint, open_run
from herd.scaling.curves import Power
from herd.scaling.forecast import forecast
from herd.scaling.law import PAPER, interval
from herd.scaling.record import joint_from, law_from, points_from, read_record, sha256_of

FILE = "forecast.json"


@settings
class PredictSettings:
    """A budget, and the law to predict with."""

    fit: Path | None = None
    """Run folder of `herd scaling fit`; default: the law of tokens below."""
    flops: float = 3.8e25
    """Training budget in FLOPs, attention included."""
    out: Path = Path("runs/forecast")
    """Run folder to write."""
    exponent: float = PAPER.exponent
    """Without a fit: alpha in tokens = A FLOPs^alpha. It predicts only size and tokens."""
    factor: float = PAPER.factor
    """Without a fit: A in tokens = A FLOPs^alpha."""
    chance: dict[str, float] = field(default_factory=dict)
    """Accuracy of random guessing, by task; default: 0.25."""

    def __post_init__(self):
        if self.flops <= 0 or self.factor <= 0 or not 0 < self.exponent < 1:
            raise ValueError("flops and factor must be above 0, exponent between 0 and 1")
        if self.fit is not None and Power(self.factor, self.exponent) != PAPER:
            raise ValueError("give either `fit`, or `exponent` and `factor`")


def run(settings: PredictSettings) -> Path:
    """Write `forecast.json`, which contains its own hash."""
    with open_run(settings.out, stage="scaling predict", settings=settings, inputs={"fit": settings.fit}) as run:
        if run.finished:
            return run.path
        if settings.fit is None:
            prediction = _from_law(Power(settings.factor, settings.exponent), settings.flops)
        else:
            prediction = _from_fit(read_record(settings.fit), settings) | {"fit": fingerprint(settings.fit)}
        prediction |= {"flops": settings.flops, "written": now()}
        digest = sha256_of(prediction)
        atomic_write(run.path / FILE, json.dumps(prediction | {"sha256": digest}, indent=1))
        for line in _lines(prediction):
            say(f"  {line}")
        say(f"  written {prediction['written']}, sha256 {digest}")
        loss = prediction.get("loss") or {}
        values = {name: prediction[name]["value"] for name in ("parameters", "tokens")} | {"loss": loss.get("value")}
        run.finish({name: float(f"{one:.6g}") for name, one in values.items() if one is not None} | {"sha256": digest})
    return run.path


def _from_law(law: Power, flops: float) -> dict[str, Any]:
    tokens = law(flops)
    notes = ["parameters are FLOPs / (6 tokens): neither attention nor the head counts"]
    if law == PAPER and flops == 3.8e25:
        notes.append(
            "the paper prints 402B parameters on 16.55T tokens; its rounded legend (0.537, 0.299) gives "
            f"{amount(flops / 6 / tokens)} on {tokens / 1e12:.1f}T"
        )
    return {"tokens": {"value": tokens}, "parameters": {"value": flops / 6 / tokens}, "notes": notes}


def _from_fit(record: dict[str, Any], settings: PredictSettings) -> dict[str, Any]:
    flops, law = settings.flops, law_from(record["law"])
    draws = [law_from(one) for one in record["draws"]]
    random = np.random.default_rng(0)
    losses = [one.loss(flops) + random.normal(0, record["noise"]) for one in draws]
    prediction: dict[str, Any] = {
        "metric": record["metric"],
        "tokens": _entry(law.tokens(flops), [one.tokens(flops) for one in draws]),
        "parameters": _entry(law.parameters(flops), [one.parameters(flops) for one in draws]),
        "loss": _entry(law.loss(flops), losses) | {"irreducible": law.loss.irreducible},
        "learning_rate": Power(**record["dial"]["learning_rate"])(law.parameters(flops)),
        "batch_tokens": Power(**record["dial"]["batch_tokens"])(flops),
        "made_of": record["made_of"],
        "notes": _notes(record, flops),
    }
    if law.fitted:
        fitted = [one.fitted(flops) for one in draws if one.fitted]
        prediction["loss_with_fitted_floor"] = _entry(law.fitted(flops), fitted) | {
            "irreducible": law.fitted.irreducible
        }
    if joint := joint_from(record["joint"]):
        n, d = joint.best(flops)
        prediction["all_runs_at_once"] = {"parameters": n, "tokens": d, "loss": joint.loss(n, d)}
    prediction["answers"] = _answers(record, settings, prediction["notes"])
    return prediction


def _entry(value: float, draws: list[float]) -> dict[str, float]:
    ends = interval(draws)
    return {"value": value} | ({"low": ends[0], "high": ends[1]} if ends else {})


def _notes(record: dict[str, Any], flops: float) -> list[str]:
    used = [one["flops"] for one in record["budgets"] if not one["why"]]
    notes = list(record["notes"])
    beyond, span = math.log10(flops / max(used)), math.log10(max(used) / min(used))
    if beyond > span:
        notes.append(
            f"far extrapolation: {flops:.3g} FLOPs are {beyond:.1f} decades beyond the largest budget, and the budgets "
            f"span only {span:.1f}; the interval covers the noise of the runs, not whether the law holds there"
        )
    if flops < min(used):
        notes.append(f"{flops:.3g} FLOPs are below the smallest budget ({min(used):.3g})")
    return notes


def _answers(record: dict[str, Any], settings: PredictSettings, notes: list[str]) -> list[dict[str, Any]]:
    points = {one.name: one for one in points_from(record["runs"])}
    best = [
        min((points[name] for name in one["runs"]), key=lambda point: point.loss)
        for one in record["budgets"]
        if not one["why"]
    ]
    everyone = [*points.values(), *points_from(record["also"])]
    answers = []
    for task in dict.fromkeys(task for point in points.values() for task in point.answers):
        try:
            result = forecast(task, best, everyone, settings.flops, chance=settings.chance.get(task, 0.25))
        except DataError as error:
            notes.append(str(error))
            continue
        row: dict[str, Any] = {"task": task, "nats_per_character": dict(zip(("value", "low", "high"), result.nats))}
        if result.accuracy:
            row["accuracy"] = dict(zip(("value", "low", "high"), result.accuracy))
        else:
            notes.append(f"{task}: {result.why}")
        answers.append(row)
    return answers


def _lines(prediction: dict[str, Any]) -> list[str]:
    def within(entry: dict[str, float], show: Any) -> str:
        return show(entry["value"]) + (f" ({show(entry['low'])} to {show(entry['high'])})" if "low" in entry else "")

    lines = [
        f"{prediction['flops']:.4g} FLOPs: {within(prediction['parameters'], amount)} parameters on "
        f"{within(prediction['tokens'], amount)} tokens"
    ]
    if "loss" in prediction:
        lines.append(f"{prediction['metric']} {within(prediction['loss'], '{:.4f}'.format)}, irreducible part fixed")
    if fitted := prediction.get("loss_with_fitted_floor"):
        lines.append(f"{prediction['metric']} {within(fitted, '{:.4f}'.format)}, irreducible part fitted")
    for row in prediction.get("answers", []):
        nats = within(row["nats_per_character"], "{:.4f}".format)
        text = f"{row['task']}: {nats} nats per character of the right answer"
        if "accuracy" in row:
            text += f", accuracy {within(row['accuracy'], '{:.3f}'.format)}"
        lines.append(text)
    return lines + prediction["notes"]
