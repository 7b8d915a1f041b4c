"""One HTML page per run: what was done, the results, and the command to repeat it.

The page is self-contained (plots are inline SVG, no script, nothing is fetched) and made only from the files of run
folders, so it can be made at any time, for one run folder or for a folder of run folders.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from herd.curate.meanings import STEPS
from herd.errors import DataError
from herd.log import amount, duration, size
from herd.report.compare import side_by_side
from herd.report.curves import COLOURS, losses, plot
from herd.report.first import first_screen
from herd.report.parts import KEPT_FOR_FIRST, escaped, section, shown, table, words
from herd.report.runs import StageRun, find_runs
from herd.scaling.plots import DRAWN

_VIEWPORT = '<meta name=viewport content="width=device-width, initial-scale=1">'


def render(*paths: Path) -> str:
    """The report of a run folder, or of all run folders in it; for several paths, their runs side by side.

    Raises:
        DataError: a path has no finished run.
    """
    runs_at = {path: find_runs(path) for path in paths}
    if empty := [path for path, runs in runs_at.items() if not runs]:
        raise DataError(f"{empty[0]}: no finished run folder here, nothing to report")
    if len(paths) > 1:
        title = "Herd: " + ", ".join(path.resolve().name for path in paths)
        named = [run.within(path) for path, runs in runs_at.items() for run in runs]
        return _document(title, f"<header><h1>{escaped(title)}</h1></header>", named, [side_by_side, _commands])
    [(path, runs)] = runs_at.items()
    title = f"Herd: {path.resolve().name}"
    sections = [_stages, _funnel, _tokenizer, losses, _scaling, _watched, _compression, _samples, _needle, _answers]
    sections += [_dialogues, _quantization, side_by_side, _commands, _machine]
    return _document(title, first_screen(title, path, runs), runs, sections)


def _document(
    title: str, top: str, runs: Sequence[StageRun], sections: Sequence[Callable[[Sequence[StageRun]], str]]
) -> str:
    body = "\n".join(made for one in sections if (made := one(runs)))
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escaped(title)}</title>{_VIEWPORT}"
    return f"{head}<style>{style}</style><body>{top}{body}</body></html>\n"


# ---- sections --------------------------------------------------------------------------------------------------------


def _stages(runs: Sequence[StageRun]) -> str:
    total = sum(run.seconds for run in runs) or 1
    parts = []
    for run in runs:
        figures = [(words(key), shown(key, value)) for key, value in run.figures.items() if key not in KEPT_FOR_FIRST]
        items = "".join(f"<div><dt>{escaped(name)}</dt><dd>{value}</dd></div>" for name, value in figures)
        bar = f"<i class=bar style='width:{100 * run.seconds / total:.1f}%'></i>"
        head = f"<b>{escaped(run.name)}</b><span class=time>{duration(run.seconds)}{bar}</span>"
        brief = ", ".join(f"{escaped(name)} {value}" for name, value in figures[:2])
        parts.append(
            f"<details class=stage><summary>{head}<span class=brief>{brief}</span></summary><dl>{items}</dl></details>"
        )
    note = "Each step with its time and first two figures; open it for all."
    return section("Figures by stage", "".join(parts), note)


def _funnel(runs: Sequence[StageRun]) -> str:
    funnel = next((found for run in runs if (found := run.json("funnel.json"))), None)
    if not funnel:
        return ""
    steps = funnel["steps"]
    first = max(steps[0]["documents_in"], 1)
    parts = []
    for step in steps:
        share = step["documents_out"] / first
        reasons = ", ".join(
            f"{escaped(reason)} {count:,}" for reason, count in step.get("reasons", {}).items() if count
        )
        line = (
            f"<div class=step><span>{escaped(STEPS.get(step['name'], step['name']))}</span>"
            f"<span class=track><i class=fill style='width:{100 * share:.1f}%'></i></span>"
            f"<span>{step['documents_in']:,} → {step['documents_out']:,} documents, "
            f"{size(step.get('bytes_out', 0))}</span></div>"
        )
        examples = "".join(
            f"<li><b>{escaped(example.get('reason', ''))}</b> {escaped(str(example.get('detail') or ''))} "
            f"<code>{escaped(example.get('url', ''))}</code>"
            f"<pre>{escaped(str(example.get('text', ''))[:600])}</pre></li>"
            for example in step.get("examples", [])
        )
        details = (
            f"<details><summary>{reasons or 'examples'}</summary><ul>{examples}</ul></details>"
            if examples or reasons
            else ""
        )
        parts.append(line + details)
    return section(
        "The funnel: from pages to documents",
        "".join(parts),
        "Dropped documents stay in the Parquet files with their reason.",
    )


def _tokenizer(runs: Sequence[StageRun]) -> str:
    rows = next((found for run in runs if (found := run.json("compression.json"))), None)
    if not rows:
        return ""
    rows = sorted(rows, key=lambda row: -row["bytes"])
    cells = [
        (
            row["source"] + (" (held out)" if row["held_out"] else ""),
            row["language"],
            size(row["bytes"]),
            f"{row['bytes_per_token']:.2f}",
            f"{row['characters_per_token']:.2f}",
        )
        for row in rows[:12]
    ]
    head = ("source", "language", "sampled", "bytes per token", "characters per token")
    return section("The tokenizer", table(head, cells))


def _scaling(runs: Sequence[StageRun]) -> str:
    drawn = [(draw, run.json(file)) for run in runs for stage, (file, draw) in DRAWN.items() if run.stage == stage]
    plots = "".join(plot(partial(draw, record=record), width=9, height=3.2) for draw, record in drawn)
    return section("Small runs", plots) if plots else ""


def _watched(runs: Sequence[StageRun]) -> str:
    parts = []
    for run in runs:
        if rows := run.rows("evaluations.jsonl"):
            figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
            if len(rows) > 1:
                draw = partial(_draw_watched, rows=rows, figures=figures, name=run.name)
                parts.append(plot(draw, width=9, height=2.6))
            cells = [
                (f"{row['step']:,}", *(shown(one, row["figures"].get(one, "")) for one in figures)) for row in rows
            ]
            parts.append(table(("step", *map(words, figures)), cells))
    return section("Evaluated during training", "".join(parts)) if parts else ""


def _draw_watched(figure: Figure, rows: Sequence[dict], figures: Sequence[str], name: str) -> None:
    """One plot for each kind of figure, which is the last word of its name."""
    kinds = list(dict.fromkeys(one.split()[-1] for one in figures))
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        for one, colour in zip([one for one in figures if one.split()[-1] == kind], cycle(COLOURS)):
            own = [(row["step"], row["figures"][one]) for row in rows if one in row["figures"]]
            axes.plot(*zip(*own, strict=True), color=colour, marker=".", label=one.removesuffix(kind).strip())
        axes.set(xlabel="step", title=f"{name}: {kind.replace('_', ' ')}")
        axes.legend(fontsize=7)


def _compression(runs: Sequence[StageRun]) -> str:
    scores = [score for score in _scores(runs) if score["metric"] == "bits_per_byte"]
    note = "Of held-out text; lower is better. The trigram model and xz are baselines."
    return section("Bits per byte", _pivot(scores), note) if scores else ""


def _samples(runs: Sequence[StageRun]) -> str:
    parts: list[str] = []
    for run in runs:
        for row in run.rows("training_samples.jsonl"):
            when = f"{escaped(run.name)}, {row['share']:.0%} ({amount(row['tokens'])} tokens)"
            texts = "".join(f"<pre><b>{escaped(s['prompt'])}</b>{escaped(s['text'])}</pre>" for s in row["samples"])
            parts.append(f"<details{'' if parts else ' open'}><summary>{when}</summary>{texts}</details>")
    return section("Samples during training", "".join(parts), "Unedited.") if parts else ""


def _needle(runs: Sequence[StageRun]) -> str:
    grid = next((found for run in runs if (found := run.json("needle.json"))), None)
    if not grid:
        return ""

    def cell(value: float | None) -> str:
        if value is None:
            return "<td>"
        return f"<td class=cell style='background:rgba(63,156,90,{value:.2f})'>{value:.0%}"

    models = grid.get("models", {"": grid})
    parts = []
    for name, model in models.items():
        head = "".join(f"<th>{length}" for length in model["lengths"])
        body = "".join(
            f"<tr><th>{depth:.0%}{''.join(cell(value) for value in row)}"
            for depth, row in zip(model["depths"], model["accuracy"])
        )
        grid_table = f"<table class=grid><tr><th>depth \\ tokens{head}{body}</table>"
        parts.append(f"<h3>{escaped(name)}</h3><div class=wide>{grid_table}</div>")
    return section("Needle in a haystack", "".join(parts), escaped(grid.get("note", "")))


def _answers(runs: Sequence[StageRun]) -> str:
    scores = [score for score in _scores(runs) if score["metric"] != "bits_per_byte"]
    if not scores:
        return ""
    tasks = {score["task"] for score in scores}
    parts = [score for score in scores if any(score["task"].endswith(f" {task}") for task in tasks)]  # of one kind
    note = "Measured on wordings and modules that training never contained, not by the reward."
    body = _pivot([score for score in scores if score not in parts])
    details = f"<details><summary>by kind of question</summary>{_pivot(parts)}</details>" if parts else ""
    return section("Scores", body + details, note)


def _dialogues(runs: Sequence[StageRun]) -> str:
    rows = [row for run in runs if run.stage == "evaluate" for row in run.rows("samples.jsonl") if row.get("question")]
    rows = [row for row in rows if "left_out" not in row]
    if not rows:
        return ""
    parts = [
        f"<div class=talk><p class=user>{escaped(row['question'])}</p><p class=answer>{escaped(row['answer'])}</p>"
        f"<p class=reference>{escaped(row.get('model', ''))} · expected: {escaped(row.get('reference', ''))}</p></div>"
        for row in _spread(rows, 24)
    ]
    return section("Answers, unedited", "".join(parts))


def _quantization(runs: Sequence[StageRun]) -> str:
    run = next((run for run in runs if run.stage == "quantize"), None)
    if run is None:
        return ""
    rows = [(words(key), shown(key, value)) for key, value in run.figures.items()]
    return section("Quantized to int8", table(("", ""), rows))


def _commands(runs: Sequence[StageRun]) -> str:
    lines = [f"herd {run.stage} {shlex.quote(str(run.path / 'settings.yaml'))} out=NEW_FOLDER" for run in runs]
    note = "Each folder keeps its resolved settings; with them a stage is repeated from the same inputs."
    return section("Repeat it", f"<pre>{escaped(chr(10).join(lines))}</pre>", note)


def _machine(runs: Sequence[StageRun]) -> str:
    environment = runs[-1].json("environment.json") or {}
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    rows = [(key, environment[key]) for key in ("processor", "cores", "system", "python") if key in environment]
    return section("The machine", table(("", ""), [*rows, ("packages", packages)]))


# ---- parts -----------------------------------------------------------------------------------------------------------


def _spread(rows: Sequence[dict], count: int) -> list[dict]:
    """At most `count` rows, evenly spaced over the list."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in np.linspace(0, len(rows) - 1, count).astype(int)]


def _scores(runs: Sequence[StageRun]) -> list[dict[str, Any]]:
    return [score for run in runs for score in run.rows("scores.jsonl")]


def _pivot(scores: Sequence[dict[str, Any]]) -> str:
    """A table with a row for each task and metric and a column for each model."""
    lines = list(dict.fromkeys((score["task"], score["metric"]) for score in scores))
    cells = {(score.get("model", ""), score["task"], score["metric"]): _score(score) for score in scores}
    asked = [[score.get("model", "") for score in scores if (score["task"], score["metric"]) == line] for line in lines]
    models = list(dict.fromkeys(model for names in sorted(asked, key=len, reverse=True) for model in names))
    rows = [
        [f"{escaped(task)}<small>{escaped(words(metric))}</small>"]
        + [cells.get((model, task, metric), "") for model in models]
        for task, metric in lines
    ]
    return table(["", *map(escaped, models)], rows, raw=True)


def _score(score: dict[str, Any]) -> str:
    if (left := len(score.get("left_out", ()))) and not score["n"]:
        return f"<small>all {left} left out</small>"
    if score.get("low") is not None:
        spread = f"{score['low']:.3f} to {score['high']:.3f}"
    else:
        spread = f"± {1.96 * score['stderr']:.3f}" if score.get("stderr") else ""
    return f"<b>{score['value']:.3f}</b><small>{spread}{f', {left} left out' if left else ''}</small>"
