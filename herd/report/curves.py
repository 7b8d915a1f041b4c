"""Loss curves with values under the pointer, validation beside training, and warnings about losses that rise."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from herd.log import amount, figure
from herd.report.parts import escaped, section
from herd.report.runs import StageRun, steps_of

INK = "#8a8f98"  # legible on a light and on a dark page
COLOURS = ("#3b82c4", "#d9822b", "#3f9c5a", "#b04a8f", "#7a6bd1", "#c14d4d")
Values = Sequence[float] | np.ndarray
_TRAINING = ("pretrain", "sft", "reward", "dpo", "distill", "rl", "tune")
_TIPS = 48  # points of a curve that have a tooltip
_LEAST_STEPS = 20  # with fewer, a loss has no trend


def losses(runs: Sequence[StageRun]) -> str:
    """The losses of all training runs, pre-training in one plot, with a warning for each that rises."""
    language = [run for run in runs if run.stage == "pretrain" and steps_of(run)]
    parts = [plot(partial(_draw_pretraining, runs=language), width=9, height=3.4)] if language else []
    for run in runs:
        if run.stage in _TRAINING and run not in language and steps_of(run):
            parts.append(plot(partial(_draw_objective, run=run), width=4.4, height=2.8))
    items = "".join(f"<li>{escaped(one)}</li>" for run in runs for one in climbing(run))
    warnings = f"<ul class=warn>{items}</ul>" if items else ""
    note = "Point at a curve for its values. Thin: each step; thick: smoothed; dashed: validation."
    return section("Losses", warnings + "".join(parts), note) if parts else ""


def climbing(run: StageRun) -> list[str]:
    """Warnings about a loss that rises at the end of a run by more than its noise."""
    sentences = []
    loss = [row["loss"] for row in steps_of(run)]
    if len(loss) >= _LEAST_STEPS and run.stage != "rl":  # a policy's loss does not measure its quality
        before, last = np.array_split(np.asarray(loss, dtype=float), 4)[2:]
        noise = math.hypot(*(part.std() / math.sqrt(len(part)) for part in (before, last)))
        if last.mean() - before.mean() > max(3 * noise, 0.01 * abs(before.mean())):
            sentences.append(
                f"{run.name}: the loss rises at the end, from {before.mean():.3f} in the third quarter of steps to "
                f"{last.mean():.3f} in the last; try a lower learning rate or other data first"
            )
    if validation := run.rows("validation.jsonl"):
        best = min(validation, key=lambda row: row["loss"])
        if validation[-1]["loss"] > 1.01 * best["loss"]:
            sentences.append(
                f"{run.name}: the validation loss was lowest after step {best['step']:,} ({best['loss']:.3f}) and is "
                f"{validation[-1]['loss']:.3f} at the end: after that step the run overfitted"
            )
    return sentences


def _draw_pretraining(figure: Figure, runs: Sequence[StageRun]) -> None:
    loss, rate = figure.subplots(1, 2, width_ratios=(3, 2))
    offset = 0.0
    for run, colour in zip(runs, COLOURS):
        rows = steps_of(run)
        tokens = np.array([row.get("tokens", row["step"]) for row in rows]) + offset
        draw_loss(loss, tokens / 1e6, run, colour, label=run.name, unit="million tokens")
        rate.plot(tokens / 1e6, [row.get("learning_rate", np.nan) for row in rows], color=colour)
        offset = tokens[-1] if len(tokens) else offset
    loss.set(xlabel="million tokens", ylabel="loss (nats per token)")
    loss.legend()
    rate.set(xlabel="million tokens", ylabel="learning rate")


def _draw_objective(figure: Figure, run: StageRun) -> None:
    axes, rows = figure.subplots(), steps_of(run)
    steps = [row["step"] for row in rows]
    draw_loss(axes, steps, run, COLOURS[0], label="loss", unit="step")
    if any("accuracy" in row for row in rows):
        accuracy = axes.twinx()
        accuracy.plot(steps, smooth([row.get("accuracy", np.nan) for row in rows]), color=COLOURS[2])
        accuracy.set_ylabel("accuracy", color=COLOURS[2])
        axes.set_zorder(accuracy.get_zorder() + 1)  # so that the loss has the tooltips
        axes.patch.set_visible(False)
    axes.set(xlabel="step", ylabel="loss", title=run.name)


def draw_loss(axes: Axes, x: Values, run: StageRun, colour: str, *, label: str, unit: str) -> None:
    """A run's loss by step and smoothed, and its validation loss dashed."""
    rows = steps_of(run)
    loss = [row["loss"] for row in rows]
    axes.plot(x, loss, color=colour, linewidth=0.5, alpha=0.35)
    axes.plot(x, smooth(loss), color=colour, label=label)
    _tips(axes, x, smooth(loss), colour, f"{run.name}: loss", unit)
    places = {row["step"]: place for row, place in zip(rows, x)}
    if validation := [row for row in run.rows("validation.jsonl") if row["step"] in places]:
        at, values = [places[row["step"]] for row in validation], [row["loss"] for row in validation]
        axes.plot(at, values, color=colour, linestyle="--", marker=".", label=f"{label}, validation")
        _tips(axes, at, values, colour, f"{run.name}: validation loss", unit)


def _tips(axes: Axes, x: Values, y: Values, colour: str, name: str, unit: str) -> None:
    """Invisible points with tooltips."""
    for place in dict.fromkeys(np.linspace(0, len(x) - 1, min(len(x), _TIPS)).astype(int).tolist()):
        [point] = axes.plot([x[place]], [y[place]], "o", color=colour, markersize=9, alpha=0.0)
        at = amount(x[place]) if unit == "step" else f"{x[place]:.3g}"
        point.set_gid(f"tip {name} {figure(float(y[place]))} at {unit} {at}")


def plot(draw: Callable[[Figure], None], *, width: float, height: float) -> str:
    """A figure drawn by `draw`, `width` by `height` inches, as inline SVG."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "herd",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK),
    }
    with rc_context(style):
        drawn = Figure(figsize=(width, height), layout="constrained")
        draw(drawn)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same page from the same run
        drawn.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r'<g id="tip ([^"]*)">', r"<g class=tip><title>\1</title>", buffer.getvalue())
    return f"<div class=plot>{svg[svg.index('<svg') :]}</div>"


def smooth(values: Sequence[float]) -> np.ndarray:
    """A centred moving average over about a fortieth of the run."""
    array = np.asarray(values, dtype=float)
    width = min(max(1, len(array) // 40), max(0, (len(array) - 1) // 2))
    window = np.ones(2 * width + 1)
    return np.convolve(array, window, "same") / np.convolve(np.ones_like(array), window, "same")
