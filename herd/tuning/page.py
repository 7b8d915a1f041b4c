"""The results of tuning as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from herd.evals.page import style

_SHOWN = 12  # labels up to which a confusion matrix is a table


def page(results: Mapping[str, Any]) -> str:
    """The page of `results.json`."""
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    parts = [_facts(results), _figures(results["figures"]), _validation(results.get("validation") or ())]
    if "confusion" in results:
        parts += [_confusion(results["labels"], results["confusion"]), _calibration(results["calibration"])]
    parts += [_answers(results.get("answers") or ()), _use(results["commands"])]
    return f"{head}<title>Tuning</title><style>{style()}</style><body><h1>Tuning</h1>{''.join(parts)}</html>\n"


def _facts(results: Mapping[str, Any]) -> str:
    lines = "".join(f"<tr><td>{escape(name)}<td>{escape(str(value))}" for name, value in results["facts"].items())
    return f"<table>{lines}</table>"


def _span(values: Sequence[float], sign: str = "") -> str:
    value, low, high = values
    return f"{value:{sign}.3f} <span class=dim>{low:{sign}.3f} to {high:{sign}.3f}</span>"


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{escape(row['name'])}<td class=n>{row['n']}<td class=n>{_span(row['before'])}"
        f"<td class=n>{_span(row['after'])}<td class=n>{_span(row['difference'], '+')}<td class=n>{row['p']:.2g}"
        f"<td>{escape(row['says'])}"
        for row in figures
    )
    head = "<tr><th>figure<th>n<th>before<th>after<th>difference<th>p<th>says"
    note = (
        "On rows that were kept aside, the same before and after, with 95 % intervals; p is a paired test. What is not "
        "shown may be there: more rows would tell."
    )
    return f"<h2>Before and after</h2><p class=dim>{note}</p><div class=wide><table>{head}{lines}</table></div>"


def _validation(rows: Sequence[Mapping[str, float]]) -> str:
    if not rows:
        return ""
    best = min(row["loss"] for row in rows)
    lines = "".join(
        f"<tr><td class=n>{row['step']:.0f}<td class=n>{row['loss']:.4f}<td>{'kept' if row['loss'] == best else ''}"
        for row in rows
    )
    return f"<h2>Loss of rows watched while learning</h2><table><tr><th>step<th>loss<th>{lines}</table>"


def _confusion(labels: Sequence[str], counts: Mapping[str, Sequence[Sequence[int]]]) -> str:
    if len(labels) > _SHOWN:
        wrong = [
            (count, labels[row], labels[column])
            for row, line in enumerate(counts["after"])
            for column, count in enumerate(line)
            if row != column and count
        ]
        worst = sorted(wrong, reverse=True)[:_SHOWN]
        lines = "".join(f"<tr><td class=n>{n}<td>{escape(right)}<td>{escape(told)}" for n, right, told in worst)
        return f"<h2>Most frequent confusions, after</h2><table><tr><th>rows<th>right<th>told{lines}</table>"
    head = "<tr><th>right \\ told" + "".join(f"<th>{escape(label)}" for label in labels)
    tables = []
    for name in ("before", "after"):
        lines = "".join(
            f"<tr><td>{escape(label)}"
            + "".join(f"<td class=n>{'<b>' * (i == j)}{n}{'</b>' * (i == j)}" for j, n in enumerate(line))
            for i, (label, line) in enumerate(zip(labels, counts[name], strict=True))
        )
        tables.append(f"<h3>{name}</h3><table>{head}{lines}</table>")
    return f"<h2>Confusion matrix</h2>{''.join(tables)}"


def _bold(count: int, wish: bool) -> str:
    return f"<b>{count}</b>" if wish else str(count)


def _calibration(found: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name in ("before", "after"):
        lines = "".join(
            f"<tr><td class=n>{low:.1f} to {high:.1f}<td class=n>{n}<td class=n>{sure:.3f}<td class=n>{right:.3f}"
            for low, high, n, sure, right in found[name]["bins"]
        )
        head = "<tr><th>probability of the likeliest label<th>rows<th>mean<th>share that was right"
        parts.append(f"<h3>{name}: ECE {_span(found[name]['ece'])}</h3><table>{head}{lines}</table>")
    return f"<h2>Calibration</h2>{''.join(parts)}"


def _answers(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    shown = "".join(
        f"<details class=sample open><summary>{escape(row['asked'][:110])}</summary><pre>{escape(row['asked'])}</pre>"
        f"<p class=dim>right: {escape(row['reference'])}</p><p><b>before</b></p><pre>{escape(row['before'])}</pre>"
        f"<p><b>after</b></p><pre>{escape(row['after'])}</pre></details>"
        for row in rows
    )
    return f"<h2>Answers to held-out questions</h2>{shown}"


def _use(commands: Mapping[str, str]) -> str:
    lines = "".join(
        f"<p class=dim>{escape(what)}</p><pre>{escape(command)}</pre>" for what, command in commands.items()
    )
    return f"<h2>Use it</h2>{lines}"
