"""One HTML page per run: what was done, what came of it, and the command to do it again.

The page is self-contained (plots are inline SVG, no script, nothing is fetched) and is made only from what the stages
left on disk, so that it can be made again at any time, for one run folder or for a folder of run folders.
"""

from __future__ import annotations

import html
import io
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from herd.errors import DataError
from herd.log import amount, duration, figure, size
from herd.run import read_manifest, read_metrics
from herd.scaling.plots import DRAWN

_INK = "#8a8f98"  # reads on a light and on a dark page
_COLOURS = ("#3b82c4", "#d9822b", "#3f9c5a", "#b04a8f", "#7a6bd1", "#c14d4d")
_VIEWPORT = '<meta name=viewport content="width=device-width, initial-scale=1">'
_TRAINING = ("pretrain", "sft", "reward", "dpo")


@dataclass(frozen=True)
class StageRun:
    """A finished run folder: its name within the report, its place and its manifest."""

    name: str
    path: Path
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def figures(self) -> dict[str, Any]:
        return self.manifest.get("figures", {})

    def json(self, name: str) -> Any:
        """A JSON file of the run, None where it has none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file of the run, empty where it has none."""
        file = self.path / name
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def render(path: Path) -> str:
    """The report of a run folder, or of all run folders in it.

    Raises:
        DataError: no finished run there.
    """
    runs = find_runs(path)
    if not runs:
        raise DataError(f"{path}: no finished run folder here, nothing to report on")
    sections: list[Callable[[Sequence[StageRun]], str]] = [
        _stages,
        _funnel,
        _tokenizer,
        _losses,
        _scaling,
        _watched,
        _compression,
        _samples,
        _needle,
        _answers,
        _verdict,
        _dialogues,
        _quantization,
        _commands,
        _machine,
    ]
    body = "\n".join(section(runs) for section in sections)
    title = f"Herd: {path.resolve().name}"
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title>{_VIEWPORT}"
    return f"{head}<style>{style}</style>{_header(title, runs)}{body}</html>\n"


def find_runs(path: Path) -> list[StageRun]:
    """The finished run folders at a path or one level below, in the order they finished."""
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())] if path.is_dir() else []
    runs = []
    for folder in folders:
        if (folder / "run.json").exists():
            manifest = read_manifest(folder)
            if manifest["state"] == "finished" and manifest["stage"] not in ("demo", "report", "story"):
                runs.append(StageRun(folder.name, folder, manifest))
    return sorted(runs, key=lambda run: (run.manifest["finished"], run.name))


# ---- sections --------------------------------------------------------------------------------------------------------


def _header(title: str, runs: Sequence[StageRun]) -> str:
    seconds = sum(run.manifest.get("seconds", 0) for run in runs)
    facts = [f"{len(runs)} stages", duration(seconds), f"finished {runs[-1].manifest['finished']}"]
    energy = sum(run.figures.get("energy_joules", 0) for run in runs)
    facts.append(f"{energy / 3.6e6:.3f} kWh" if energy else "energy: this machine has no readable counter")
    return f"<header><h1>{_text(title)}</h1><p>{' · '.join(map(_text, facts))}</p></header>"


def _stages(runs: Sequence[StageRun]) -> str:
    total = sum(run.manifest.get("seconds", 0) for run in runs) or 1
    rows = []
    for run in runs:
        seconds = run.manifest.get("seconds", 0)
        figures = ", ".join(
            f"{_text(key.replace('_', ' '))} <b>{_value(key, value)}</b>" for key, value in run.figures.items()
        )
        bar = f"<i class=bar style='width:{100 * seconds / total:.1f}%'></i>"
        rows.append((_text(run.name), f"<span class=time>{duration(seconds)}{bar}</span>", figures))
    return _section("What was done", _table(("stage", "time", "result"), rows, raw=True))


def _funnel(runs: Sequence[StageRun]) -> str:
    funnel = next((found for run in runs if (found := run.json("funnel.json"))), None)
    if not funnel:
        return ""
    steps = funnel["steps"]
    first = max(steps[0]["documents_in"], 1)
    parts = []
    for step in steps:
        share = step["documents_out"] / first
        reasons = ", ".join(f"{_text(reason)} {count:,}" for reason, count in step.get("reasons", {}).items() if count)
        line = (
            f"<div class=step><span>{_text(step['name'])}</span>"
            f"<span class=track><i class=fill style='width:{100 * share:.1f}%'></i></span>"
            f"<span>{step['documents_in']:,} → {step['documents_out']:,} documents, "
            f"{size(step.get('bytes_out', 0))}</span></div>"
        )
        examples = "".join(
            f"<li><b>{_text(example.get('reason', ''))}</b> {_text(str(example.get('detail') or ''))} "
            f"<code>{_text(example.get('url', ''))}</code><pre>{_text(str(example.get('text', ''))[:600])}</pre></li>"
            for example in step.get("examples", [])
        )
        details = (
            f"<details><summary>{reasons or 'examples'}</summary><ul>{examples}</ul></details>"
            if examples or reasons
            else ""
        )
        parts.append(line + details)
    return _section(
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
    return _section("The tokenizer", _table(head, cells))


def _losses(runs: Sequence[StageRun]) -> str:
    parts = []
    language = [run for run in runs if run.stage == "pretrain" and _steps(run)]
    if language:
        parts.append(_plot(lambda figure: _draw_pretraining(figure, language), width=9, height=3.4))
    for run in runs:
        if run.stage in _TRAINING and run not in language and (rows := _steps(run)):
            parts.append(_plot(partial(_draw_objective, rows=rows, name=run.name), width=4.4, height=2.8))
    return _section("Losses", "".join(parts)) if parts else ""


def _draw_pretraining(figure: Figure, runs: Sequence[StageRun]) -> None:
    loss, rate = figure.subplots(1, 2, width_ratios=(3, 2))
    offset = 0.0
    for run, colour in zip(runs, _COLOURS):
        rows = _steps(run)
        tokens = np.array([row.get("tokens", row["step"]) for row in rows]) + offset
        loss.plot(tokens / 1e6, [row["loss"] for row in rows], color=colour, linewidth=0.5, alpha=0.35)
        loss.plot(tokens / 1e6, _smooth([row["loss"] for row in rows]), color=colour, label=run.name)
        rate.plot(tokens / 1e6, [row.get("learning_rate", np.nan) for row in rows], color=colour)
        offset = tokens[-1] if len(tokens) else offset
    loss.set(xlabel="million tokens", ylabel="loss (nats per token)")
    loss.legend()
    rate.set(xlabel="million tokens", ylabel="learning rate")


def _draw_objective(figure: Figure, rows: Sequence[dict], name: str) -> None:
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["loss"] for row in rows], color=_COLOURS[0], linewidth=0.5, alpha=0.35)
    axes.plot(steps, _smooth([row["loss"] for row in rows]), color=_COLOURS[0], label="loss")
    if any("accuracy" in row for row in rows):
        accuracy = axes.twinx()
        accuracy.plot(steps, _smooth([row.get("accuracy", np.nan) for row in rows]), color=_COLOURS[2])
        accuracy.set_ylabel("accuracy", color=_COLOURS[2])
    axes.set(xlabel="step", ylabel="loss", title=name)


def _scaling(runs: Sequence[StageRun]) -> str:
    drawn = [(draw, run.json(file)) for run in runs for stage, (file, draw) in DRAWN.items() if run.stage == stage]
    plots = "".join(_plot(partial(draw, record=record), width=9, height=3.2) for draw, record in drawn)
    return _section("Small runs", plots) if plots else ""


def _watched(runs: Sequence[StageRun]) -> str:
    parts = []
    for run in runs:
        if rows := run.rows("evaluations.jsonl"):
            figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
            if len(rows) > 1:
                draw = partial(_draw_watched, rows=rows, figures=figures, name=run.name)
                parts.append(_plot(draw, width=9, height=2.6))
            cells = [
                (f"{row['step']:,}", *(_value(one, row["figures"].get(one, "")) for one in figures)) for row in rows
            ]
            parts.append(_table(("step", *(name.replace("_", " ") for name in figures)), cells))
    return _section("Judged while it learned", "".join(parts)) if parts else ""


def _draw_watched(figure: Figure, rows: Sequence[dict], figures: Sequence[str], name: str) -> None:
    """One plot for each kind of figure: its last word says which."""
    kinds = list(dict.fromkeys(one.split()[-1] for one in figures))
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        for one, colour in zip([one for one in figures if one.split()[-1] == kind], cycle(_COLOURS)):
            own = [(row["step"], row["figures"][one]) for row in rows if one in row["figures"]]
            axes.plot(*zip(*own, strict=True), color=colour, marker=".", label=one.removesuffix(kind).strip())
        axes.set(xlabel="step", title=f"{name}: {kind.replace('_', ' ')}")
        axes.legend(fontsize=7)


def _compression(runs: Sequence[StageRun]) -> str:
    scores = [score for score in _scores(runs) if score["metric"] == "bits_per_byte"]
    note = "Of held-out text; lower is better. The trigram model and xz are there to be beaten."
    return _section("Bits per byte", _pivot(scores), note) if scores else ""


def _samples(runs: Sequence[StageRun]) -> str:
    parts: list[str] = []
    for run in runs:
        for row in run.rows("training_samples.jsonl"):
            when = f"{_text(run.name)}, {row['share']:.0%} ({amount(row['tokens'])} tokens)"
            texts = "".join(f"<pre><b>{_text(s['prompt'])}</b>{_text(s['text'])}</pre>" for s in row["samples"])
            parts.append(f"<details{'' if parts else ' open'}><summary>{when}</summary>{texts}</details>")
    return _section("What it wrote while it learned", "".join(parts), "Unedited samples.") if parts else ""


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
        parts.append(f"<h3>{_text(name)}</h3><table class=grid><tr><th>depth \\ tokens{head}{body}</table>")
    return _section("Needle in a haystack", "".join(parts), _text(grid.get("note", "")))


def _answers(runs: Sequence[StageRun]) -> str:
    scores = [score for score in _scores(runs) if score["metric"] != "bits_per_byte"]
    if not scores:
        return ""
    tasks = {score["task"] for score in scores}
    parts = [score for score in scores if any(score["task"].endswith(f" {task}") for task in tasks)]  # of one kind
    note = "Steps are judged by wordings that training never contained and by modules it never saw, not by the reward."
    body = _pivot([score for score in scores if score not in parts])
    details = f"<details><summary>by kind of question</summary>{_pivot(parts)}</details>" if parts else ""
    return _section("Scores", body + details, note)


def _verdict(runs: Sequence[StageRun]) -> str:
    sentences = [sentence for run in runs for sentence in str(run.figures.get("verdict", "")).split("; ") if sentence]
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return _section("What improved and what did not", f"<ul>{items}</ul>") if items else ""


def _dialogues(runs: Sequence[StageRun]) -> str:
    rows = [row for run in runs if run.stage == "evaluate" for row in run.rows("samples.jsonl") if row.get("question")]
    rows = [row for row in rows if "left_out" not in row]
    if not rows:
        return ""
    parts = [
        f"<div class=talk><p class=user>{_text(row['question'])}</p><p class=answer>{_text(row['answer'])}</p>"
        f"<p class=reference>{_text(row.get('model', ''))} · expected: {_text(row.get('reference', ''))}</p></div>"
        for row in _spread(rows, 24)
    ]
    return _section("Answers, unedited", "".join(parts))


def _quantization(runs: Sequence[StageRun]) -> str:
    run = next((run for run in runs if run.stage == "quantize"), None)
    if run is None:
        return ""
    rows = [(key.replace("_", " "), _value(key, value)) for key, value in run.figures.items()]
    return _section("Quantized to int8", _table(("", ""), rows))


def _commands(runs: Sequence[StageRun]) -> str:
    lines = [f"herd {run.stage} {shlex.quote(str(run.path / 'settings.yaml'))} out=NEW_FOLDER" for run in runs]
    note = "Each folder keeps the resolved settings; giving them back redoes the stage from the same inputs."
    return _section("Do it again", f"<pre>{_text(chr(10).join(lines))}</pre>", note)


def _machine(runs: Sequence[StageRun]) -> str:
    environment = runs[-1].json("environment.json") or {}
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    rows = [(key, environment[key]) for key in ("processor", "cores", "system", "python") if key in environment]
    return _section("The machine", _table(("", ""), [*rows, ("packages", packages)]))


# ---- parts -----------------------------------------------------------------------------------------------------------


def _section(title: str, body: str, note: str = "") -> str:
    note = f"<p class=note>{note}</p>" if note else ""
    return f"<section><h2>{_text(title)}</h2>{note}{body}</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]], *, raw: bool = False) -> str:
    keep = str if raw else _text
    top = "".join(f"<th>{_text(name)}" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{keep(cell)}" for cell in row) for row in rows)
    return f"<div class=wide><table><tr>{top}{body}</table></div>"


def _plot(draw: Callable[[Figure], None], *, width: float, height: float) -> str:
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "herd",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.labelcolor": _INK,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), _INK),
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same page from the same run
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    return f"<div class=plot>{svg[svg.index('<svg') :]}</div>"


def _steps(run: StageRun) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.path) if row.get("loss") is not None and "step" in row]


def _smooth(values: Sequence[float]) -> np.ndarray:
    """A centred moving average over about a fortieth of the run."""
    array = np.asarray(values, dtype=float)
    width = min(max(1, len(array) // 40), max(0, (len(array) - 1) // 2))
    window = np.ones(2 * width + 1)
    return np.convolve(array, window, "same") / np.convolve(np.ones_like(array), window, "same")


def _spread(rows: Sequence[dict], count: int) -> list[dict]:
    """At most `count` rows, evenly over the list, so that no kind of question is favoured."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in np.linspace(0, len(rows) - 1, count).astype(int)]


def _scores(runs: Sequence[StageRun]) -> list[dict[str, Any]]:
    return [score for run in runs for score in run.rows("scores.jsonl")]


def _pivot(scores: Sequence[dict[str, Any]]) -> str:
    """A table with a row for each model and a column for each task and metric."""
    columns = list(dict.fromkeys((score["task"], score["metric"]) for score in scores))
    cells = {(score.get("model", ""), score["task"], score["metric"]): _score(score) for score in scores}
    models = list(dict.fromkeys(model for model, *_ in cells))
    head = ["", *(f"{task}: {metric.replace('_', ' ')}" for task, metric in columns)]
    rows = [[_text(model), *(cells.get((model, *column), "") for column in columns)] for model in models]
    return _table(head, rows, raw=True)


def _score(score: dict[str, Any]) -> str:
    if (left := len(score.get("left_out", ()))) and not score["n"]:
        return f"<small>all {left} left out</small>"
    if score.get("low") is not None:
        spread = f"{score['low']:.3f} to {score['high']:.3f}"
    else:
        spread = f"± {1.96 * score['stderr']:.3f}" if score.get("stderr") else ""
    return f"<b>{score['value']:.3f}</b> <small>{spread}{f', {left} left out' if left else ''}</small>"


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text(str(value))
    if key.endswith("_bytes") or key == "bytes":
        return size(value)
    if key.endswith("seconds"):
        return duration(value)
    return figure(value) if isinstance(value, float) else f"{value:,}"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
