"""What a judge said as one self-contained page: strengths, win rates, the judge's own faults, every verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from herd.evals.page import SHOWN, style

Row = Mapping[str, Any]
_WIDTH = 480  # of a drawn interval, in pixels


def judged_page(judge: str, rows: Sequence[Row], pairs: Sequence[Row], ratings: Sequence[Row]) -> str:
    """The page; rows are those of the run folder's `judgements.jsonl`, `pairs.jsonl` and `ratings.jsonl`."""
    head = "<!doctype html><html lang=en><meta charset=utf-8>"
    head += "<meta name=viewport content='width=device-width, initial-scale=1'>"
    read = [row for row in rows if row["score"] is not None]
    flipped = sum(row["flipped"] for row in read)
    told = f"{escape(judge)} read {len(rows):,} pairs of answers, each in both orders. It changed its mind with the "
    told += f"order in {flipped:,} of {len(read):,} ({flipped / max(len(read), 1):.0%}), which counts as a draw"
    lost = len(rows) - len(read)
    told += f"; of {lost:,} a verdict could not be read: they are left out." if lost else "."
    body = f"<h1>Judged answers</h1><p>{told}</p>{_strengths(ratings)}{_pairs(pairs)}{_duels(rows)}"
    return f"{head}<title>Judged answers</title><style>{style()}</style><body>{body}</html>\n"


def _strengths(ratings: Sequence[Row]) -> str:
    """Bradley and Terry's points, each with its interval as a line."""
    low, high = min(row["low"] for row in ratings), max(row["high"] for row in ratings)
    scale = (_WIDTH - 20) / max(high - low, 1.0)
    lines = ""
    for row in ratings:
        begin, middle, end, zero = (
            10 + (points - low) * scale for points in (row["low"], row["points"], row["high"], 0)
        )
        marks = f"<line x1={zero:.1f} x2={zero:.1f} y1=0 y2=20 stroke=#8888 stroke-dasharray=4 />"
        marks += f"<line x1={begin:.1f} x2={end:.1f} y1=10 y2=10 stroke=#4a7fb5 stroke-width=3 />"
        marks += f"<circle cx={middle:.1f} cy=10 r=5 fill=#4a7fb5 />"
        lines += f"<tr><td>{escape(row['model'])}<td class=n>{row['points']:+.0f}"
        lines += f"<td class=n><span class=dim>{row['low']:+.0f} to {row['high']:+.0f}</span>"
        lines += f"<td><svg width={_WIDTH} height=20 role=img aria-label='point and interval'>{marks}</svg>"
    note = (
        "Bradley and Terry's strengths in Elo's points, mean 0 (the dashed line), with 95 % intervals over resampled "
    )
    note += "questions. 100 points are wins of 64 %."
    table = f"<div class=wide><table><tr><th>model<th>points<th>95 % interval<th>{lines}</table></div>"
    return f"<h2>Strengths</h2><p class=dim>{note}</p>{table}"


def _pairs(pairs: Sequence[Row]) -> str:
    lines = ""
    for row in pairs:
        lines += f"<tr><td>{escape(row['model'])} against {escape(row['against'])}<td class=n>{row['n']}"
        if row["n"]:
            lines += f"<td class=n>{row['win_rate']:.1%} <span class=dim>{row['low']:.1%} to {row['high']:.1%}</span>"
            lines += f"<td class=n>{row['wins']} / {row['draws']} / {row['losses']}"
            shares = ("flip_rate", "first_preferred", "longer_won", "win_rate_at_equal_length")
            lines += "".join(f"<td class=n>{_share(row[name])}" for name in shares)
        else:
            lines += "<td>" * 6
        lines += f"<td class=n>{row['unreadable']}"
    head = "<tr><th>models<th>pairs<th>the first wins<th>won / drawn / lost<th>flipped with the order"
    head += "<th>first place preferred<th>longer answer won<th>wins at equal length<th>unreadable"
    note = "A fair judge prefers the first place in half of its verdicts and never flips; where the longer answer wins "
    note += "far more often than not, the win rate at equal length is the one to read."
    return f"<h2>Pairs</h2><p class=dim>{note}</p><div class=wide><table>{head}{lines}</table></div>"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _duels(rows: Sequence[Row]) -> str:
    named = (
        ("all", "all"),
        ("right", "same verdict in both orders"),
        ("split", "flipped"),
        ("wrong", "flipped or unreadable"),
    )
    filters = "".join(
        f"<label><input type=radio name=filter id={name}{' checked' if name == 'all' else ''}> {text}</label>"
        for name, text in named
    )
    more = f" <span class=dim>(the first {SHOWN} of {len(rows):,})</span>" if len(rows) > SHOWN else ""
    return f"<h2>Questions and verdicts{more}</h2><nav>{filters}</nav>" + "".join(map(_duel, rows[:SHOWN]))


def _duel(row: Row) -> str:
    one, other = row["models"]
    if row["score"] is None:
        kind, told = "wrong", "a verdict cannot be read"
    elif row["flipped"]:
        kind, told = "wrong split", "flipped with the order: a draw"
    else:
        kind = "right"
        told = {1.0: f"{one} won", 0.0: f"{other} won", 0.5: "a draw in both orders"}[row["score"]]
    begin = next(iter(str(row["question"]).strip().splitlines()), "")[:110]
    answers = "".join(
        f"<p><b>{escape(name)}</b> <span class=dim>{length:,} characters</span></p><pre>{escape(answer)}</pre>"
        for name, answer, length in zip(row["models"], row["answers"], row["lengths"], strict=True)
    )
    said = "".join(
        f"<p class=dim>the judge, {escape(first)} first:</p><pre>{escape(text)}</pre>"
        for first, text in zip((one, other), row["judge"], strict=True)
    )
    summary = f"<summary>{escape(begin)} <span class=dim>{escape(f'{one} against {other}: {told}')}</span></summary>"
    return f"<details class='sample {kind}'>{summary}<pre>{escape(str(row['question']))}</pre>{answers}{said}</details>"
