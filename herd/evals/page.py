"""An evaluation as one self-contained page: the tables, and every question with its answers and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

SHOWN = 200
"""Questions of a task that the page shows; all are in `samples.jsonl`."""

Row = Mapping[str, Any]
_KNOWN = {"task", "model", "item", "group", "kind", "name", "question", "answer", "answers", "reference", "choices"}
_KNOWN |= {"nats", "why", "left_out", "shots", "prompt_hash", "map", "axes"}


def page(
    scores: Sequence[Row],
    samples: Sequence[Row],
    differences: Sequence[Row],
    usage: Sequence[Row],
    published: Mapping[str, Mapping[str, float]],
    models: Sequence[str],
    skipped: Sequence[str] = (),
) -> str:
    """The page; rows are those of the run folder's files. `skipped` says which tasks were not asked, and why."""
    head = "<!doctype html><html lang=en><meta charset=utf-8>"
    head += "<meta name=viewport content='width=device-width, initial-scale=1'>"
    filters = "".join(
        f"<label><input type=radio name=filter id={name}{' checked' if name == 'all' else ''}> {text}</label>"
        for name, text in (
            ("all", "all"),
            ("right", "all models right"),
            ("wrong", "some model wrong"),
            ("split", "one right, another wrong"),
        )
    )
    parts = [_scores(scores, published, models), _skipped(skipped), _left_out(samples)]
    parts += [_maps(samples), _differences(differences), _usage(usage)]
    parts += [f"<h2>Questions and answers</h2><nav>{filters}</nav>"]
    parts += [_samples(task, samples, models) for task in dict.fromkeys(row["task"] for row in samples)]
    return f"{head}<title>Evaluation</title><style>{style()}</style><body><h1>Evaluation</h1>{''.join(parts)}</html>\n"


def style() -> str:
    """The style sheet of pages of results."""
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def _scores(scores: Sequence[Row], published: Mapping[str, Mapping[str, float]], models: Sequence[str]) -> str:
    """Ours with the interval that fits and the paper's half interval; in columns of their own what others published."""
    others = list(dict.fromkeys(name for figures in published.values() for name in figures))
    found = {(row["task"], row["metric"], row["model"]): row for row in scores}
    ours = list(dict.fromkeys(row["model"] for row in scores))
    ours = [*[name for name in models if name in ours], *[name for name in ours if name not in models]]
    lines: list[str] = []
    parts: dict[str, list[str]] = {}  # of a task the lines of its kinds, folded
    seen: set[str] = set()
    tasks = list(published)
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in scores):
        cells = [_cell(found.get((task, metric, name))) for name in ours]
        figures = published.get(task, {}) if task not in seen else {}
        seen.add(task)
        cells += [f"{figures[name]:.3f}" if name in figures else "" for name in others]
        n = max(row["n"] for row in scores if (row["task"], row["metric"]) == (task, metric))
        whole = next((one for one in tasks if task.endswith(f" {one}")), None)
        name = task if whole is None or task in tasks else task.removesuffix(f" {whole}")
        line = f"<tr><td>{escape(name)}<td>{escape(metric)}<td class=n>{n}"
        (lines if name == task else parts.setdefault(str(whole), [])).append(
            line + "".join(f"<td class=n>{c}" for c in cells)
        )
    head = "<tr><th>task<th>metric<th>n" + "".join(f"<th>ours: {escape(name)}" for name in ours)
    head += "".join(f"<th>published: {escape(name)}" for name in others)
    note = "With the 95 % interval; in brackets half the interval by the paper's formula, 1.96 sqrt(S (1 - S) / N)."
    folded = "".join(
        f"<details><summary>{escape(task)}: its {len(own)} lines by kind</summary>"
        f"<div class=wide><table>{head}{''.join(own)}</table></div></details>"
        for task, own in parts.items()
    )
    table = f"<div class=wide><table>{head}{''.join(lines)}</table></div>"
    return f"<h2>Scores</h2><p class=dim>{note}</p>{table}{folded}"


def _skipped(reasons: Sequence[str]) -> str:
    """Tasks that were not asked: what they lack."""
    if not reasons:
        return ""
    lines = "".join(f"<p class=dim>{escape(why)}</p>" for why in reasons)
    return f"<details><summary>{len(reasons)} tasks were not asked</summary>{lines}</details>"


def _maps(samples: Sequence[Row]) -> str:
    """Of tasks with a `map` the mean score of each cell, by model, and by kind where there are several."""
    grids: dict[tuple[str, str, str], dict[tuple[str, str], list[float]]] = {}
    for row in samples:
        if "map" in row and "left_out" not in row:
            kind = row["kind"] if row["kind"] not in row["map"] else ""
            cells = grids.setdefault((row["task"], row["model"], kind), {})
            cells.setdefault((row["map"][0], row["map"][1]), []).append(_main(row))
    parts = []
    for (task, model, kind), cells in grids.items():
        down, across = (sorted({cell[side] for cell in cells}, key=_in_order) for side in (0, 1))
        body = "".join(
            f"<tr><th>{escape(one)}" + "".join(_heat(cells.get((one, other), [])) for other in across) for one in down
        )
        head = "".join(f"<th>{escape(other)}" for other in across)
        axes = next((row["axes"] for row in samples if row["task"] == task and "axes" in row), ["", ""])
        corner = f"<span class=dim>{escape(' / '.join(filter(None, axes)))}</span>"
        name = ", ".join(filter(None, (task, kind, model)))
        parts.append(
            f"<figure><figcaption>{escape(name)}</figcaption><table><tr><th>{corner}{head}{body}</table></figure>"
        )
    return f"<h2>Maps</h2><div class=maps>{''.join(parts)}</div>" if parts else ""


def _in_order(label: str) -> tuple[float, str]:
    try:
        return float(label), ""
    except ValueError:
        return math.inf, label


def _heat(values: Sequence[float]) -> str:
    if not values:
        return "<td>"
    mean = sum(values) / len(values)
    return f"<td class=n style='background:hsl({120 * mean:.0f} 55% 45% / .4)' title='{len(values)} prompts'>{mean:.0%}"


def _left_out(samples: Sequence[Row]) -> str:
    """What models were not asked, or with fewer examples, and why."""
    parts = []
    found: dict[tuple[str, str], list[str]] = {}
    for row in samples:
        if "left_out" in row or "shots" in row:
            why = row.get("left_out") or f"asked with {row['shots']} example{'s' * (row['shots'] != 1)}"
            found.setdefault((row["task"], row["model"]), []).append(f"item {row['item']}: {why}")
    for (task, model), lines in found.items():
        head = f"{escape(task)}, {escape(model)}: {len(lines)} question{'s' * (len(lines) > 1)}"
        body = "".join(f"<p class=dim>{escape(line)}</p>" for line in lines)
        parts.append(f"<details><summary>{head}</summary>{body}</details>")
    return f"<h2>Beyond the context: left out, or asked with fewer examples</h2>{''.join(parts)}" if parts else ""


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    left = len(row.get("left_out") or ())
    if not row["n"]:
        return f"<span class=dim>all {left} left out</span>" if left else ""
    span = f" <span class=dim>{row['low']:.3f} to {row['high']:.3f}</span>" if row["low"] is not None else ""
    half = f" <span class=dim>[{row['paper_half']:.3f}]</span>" if row.get("paper_half") is not None else ""
    return f"{row['value']:.3f}{span}{half}" + (f" <span class=dim>{left} left out</span>" if left else "")


def _differences(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{escape(row['task'])}<td>{escape(row['model'])} against {escape(row['against'])}<td>{row['says']}"
        f"<td class=n>{row['difference']:+.3f} <span class=dim>{row['low']:+.3f} to {row['high']:+.3f}</span>"
        f"<td class=n>{row['p']:.2g}<td class=n>{row['q']:.2g}<td class=n>{row['detectable']:.3f}"
        for row in rows
    )
    head = "<tr><th>task<th>models<th>says<th>difference<th>p<th>q<th>smallest detectable"
    note = (
        "On the same questions. p: paired test; q: over all rows (Benjamini-Hochberg). What is not shown may be there."
    )
    return f"<h2>Differences</h2><p class=dim>{note}</p><div class=wide><table>{head}{lines}</table></div>"


def _usage(rows: Sequence[Row]) -> str:
    lines = "".join(
        f"<tr><td>{escape(row['task'])}<td>{escape(row['model'])}<td class=n>{row['n']}<td class=n>{row['seconds']:.1f}"
        f"<td class=n>{row.get('tokens_read', 0):,}<td class=n>{row.get('tokens_written', 0):,}"
        f"<td class=n>{row.get('cost', '')}"
        for row in rows
    )
    head = "<tr><th>task<th>model<th>questions<th>seconds<th>tokens read<th>written<th>cost"
    return f"<h2>What it took</h2><div class=wide><table>{head}{lines}</table></div>"


def _samples(task: str, samples: Sequence[Row], models: Sequence[str]) -> str:
    by_item: dict[int, list[Row]] = {}
    for row in samples:
        if row["task"] == task:
            by_item.setdefault(row["item"], []).append(row)
    shown = list(by_item.values())[:SHOWN]
    more = f" <span class=dim>(the first {SHOWN} of {len(by_item)})</span>" if len(by_item) > SHOWN else ""
    return f"<h3>{escape(task)}{more}</h3>" + "".join(map(_sample, shown))


def _sample(rows: Sequence[Row]) -> str:
    marks = {row["model"]: _main(row) for row in rows if "left_out" not in row}
    right = [name for name, value in marks.items() if value >= 1]
    wrong = [name for name, value in marks.items() if value < 1]
    kind = "right" if right and not wrong else "wrong split" if right else "wrong"
    told = f"{', '.join(right)} right, {', '.join(wrong)} wrong" if right and wrong else ""
    told = told or ", ".join(f"{name} {value:.2f}" for name, value in marks.items())
    told += "".join(f", {row['model']} not asked" for row in rows if "left_out" in row)
    first = rows[0]
    answers = "".join(
        f"<p><b>{escape(row['model'])}</b> <span class=dim>{escape(_figures(row))}</span></p>"
        f"<pre>{escape(str(row['answer']))}</pre>"
        for row in rows
    )
    question = str(first["question"])
    begin = next(iter(question.strip().splitlines()), "")[:110]
    return (
        f"<details class='sample {kind}'><summary>{escape(begin)}"
        f" <span class=dim>{escape(told)}</span></summary><pre>{escape(question)}</pre>"
        f"<p class=dim>right: {escape(str(first['reference'])[:2000])}</p>{answers}</details>"
    )


def _main(row: Row) -> float:
    return next(float(value) for key, value in row.items() if key not in _KNOWN and isinstance(value, int | float))


def _figures(row: Row) -> str:
    values = [f"{key} {value:g}" for key, value in row.items() if key not in _KNOWN and isinstance(value, int | float)]
    values += [f"{text!r} {nats:.2f}" for text, nats in zip(row.get("choices", ()), row.get("nats", ()))]
    told = [
        f"{name.replace('_', ' ')}: {row[name]}" for name in ("shots", "left_out", "why") if row.get(name, "") != ""
    ]
    return ", ".join(values + told)
