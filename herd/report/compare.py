"""Runs of one stage side by side: the settings in which they differ, their figures, their curves in one plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from herd.log import duration
from herd.report.curves import COLOURS, draw_loss, plot
from herd.report.parts import KEPT_FOR_FIRST, escaped, section, shown, table, words
from herd.report.runs import StageRun, steps_of

_MOST = 12
"""Most runs (columns) in one table."""


def side_by_side(runs: Sequence[StageRun]) -> str:
    """The runs of every stage that has several."""
    stages = {run.stage: [one for one in runs if one.stage == run.stage] for run in runs}
    parts = [_stage(name, several) for name, several in stages.items() if len(several) > 1]
    note = "Settings in which runs of one stage differ, and their results; paths and inputs are left out."
    return section("Runs side by side", "".join(parts), note) if parts else ""


def _stage(name: str, runs: Sequence[StageRun]) -> str:
    shown_runs = runs[-_MOST:]
    flat = [dict(_flat(run.manifest.get("settings", {}))) for run in shown_runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    rows = [[f"<code>{escaped(key)}</code>", *(_setting(one.get(key)) for one in flat)] for key in differing]
    rows += [["time", *(duration(run.seconds) for run in shown_runs)]]
    for key in dict.fromkeys(key for run in shown_runs for key in run.figures if key not in KEPT_FOR_FIRST):
        cells = [shown(key, run.figures[key]) if key in run.figures else "" for run in shown_runs]
        rows.append([escaped(words(key)), *(f"<b>{cell}</b>" if cell else "" for cell in cells)])
    head = ["", *(escaped(run.name) for run in shown_runs)]
    drawn = [run for run in shown_runs if steps_of(run)]
    curve = plot(partial(_draw, runs=drawn), width=9, height=3.2) if len(drawn) > 1 else ""
    left_out = f"<p class=note>The last {_MOST} of {len(runs)} runs.</p>" if len(runs) > _MOST else ""
    return f"<h3>herd {escaped(name)}</h3>{left_out}{curve}{table(head, rows, raw=True)}"


def _draw(figure: Figure, runs: Sequence[StageRun]) -> None:
    axes = figure.subplots()
    for run, colour in zip(runs, cycle(COLOURS)):
        rows = steps_of(run)
        tokens = [row.get("tokens", row["step"]) / 1e6 for row in rows]
        draw_loss(axes, tokens, run, colour, label=run.name, unit="million tokens")
    axes.set(xlabel="million tokens of the run", ylabel="loss")
    axes.legend()


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _setting(value: Any) -> str:
    text = "" if value is None else str(value)
    return escaped(text if len(text) <= 60 else text[:57] + "...")
