"""What an evaluation says at its end: a table, the differences between models in words, the figures of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from herd.evals.asking import RETRIEVED, Result, main_metric
from herd.evals.statistics import benjamini_hochberg, compared
from herd.evals.task import Item, Task
from herd.log import say
from herd.types import Score


def is_part(score: Score, tasks: Sequence[str]) -> bool:
    """Whether a score is of one kind of question of a task only."""
    return score.task not in tasks and any(score.task.endswith(f" {task}") for task in tasks)


def show_table(title: str, scores: Sequence[Score], published: Mapping[str, float]) -> None:
    """One line per model, one column per task and metric, values with their interval; what others published below."""
    columns = list(dict.fromkeys((score.task, score.metric) for score in scores))
    models = list(dict.fromkeys(score.model for score in scores))
    found = {(score.model, score.task, score.metric): score for score in scores}
    width = max((len(name) for name in models), default=0)
    heads = [f"{task.removeprefix(title).strip()} {metric}".strip().replace("_", " ") for task, metric in columns]
    say(f"  {title}: " + " | ".join(heads))
    for name in models:
        cells = [_cell(found.get((name, task, metric))) for task, metric in columns]
        say(f"    {name:<{width}}  " + "  ".join(f"{cell:<22}" for cell in cells).rstrip())
    if published:
        say("    published: " + ", ".join(f"{name} {value:.3f}" for name, value in published.items()))


def verdict(
    models: Sequence[str], values: Mapping[str, Sequence[float]], groups: Sequence[str] | None, previous: bool
) -> str:
    """How models differ on the same questions, by paired 95 % intervals: each from the first, or from the one before.

    Where the retrieved answer was scored too, the last model is held against it.
    """
    parts = []
    pairs = pairwise(models) if previous else ((models[0], other) for other in models[1:])
    for before, after in pairs:
        found = compared(values[after], values[before], groups)
        change = found.difference
        what = f"{after} {'after' if previous else 'against'} {before}"
        parts.append(f"{what}: {found.word} ({change.value:+.3f}, {change.low:+.3f} to {change.high:+.3f})")
    if RETRIEVED in values:
        last = compared(values[models[-1]], values[RETRIEVED], groups).difference
        word = "above" if last.low > 0 else "below" if last.high < 0 else "not clearly different from"
        parts.append(f"{models[-1]}: {word} the {RETRIEVED} ({last.value:+.3f}, {last.low:+.3f} to {last.high:+.3f})")
    return "; ".join(parts)


def comparisons(
    task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]], models: Sequence[str], previous: bool
) -> list[dict[str, Any]]:
    """Each pair of models on the same questions of a task: difference, paired test, smallest detectable difference."""
    metric = main_metric(task)
    values = {name: [one["scores"][metric] for one in results[name]] for name in models}
    groups = [item.group for item in items] if task.group else None
    rows = []
    for before, after in pairwise(models) if previous else ((models[0], other) for other in models[1:]):
        found = compared(values[after], values[before], groups)
        row: dict[str, Any] = {"task": task.name, "metric": metric, "model": after, "against": before, "n": len(items)}
        row |= {"difference": found.difference.value, "low": found.difference.low, "high": found.difference.high}
        rows.append(row | {"p": found.p, "detectable": found.detectable, "says": found.word})
    return rows


def show_comparisons(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons with their `q` over all of them; over several tasks only a small `q` makes a finding."""
    for row, q in zip(rows, benjamini_hochberg([row["p"] for row in rows]), strict=True):
        row["q"] = q
        if len(rows) > 1 and q > 0.05:
            row["says"] = "no difference shown"
    if len(rows) > 1:
        say(f"  {len(rows)} comparisons; one in twenty of those called better or worse may be chance:")
        for row in rows:
            what = f"{row['task']}: {row['model']} against {row['against']}"
            say(
                f"    {what}: {row['says']} ({row['difference']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f}; "
                f"q = {row['q']:.2g}; {row['n']} questions would show {row['detectable']:.3f})"
            )
    return rows


def show_usage(rows: list[dict[str, Any]], prices: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """What each model took for each task, and of models with a price what it cost."""
    for row in rows:
        if row["model"] in prices:
            read, written = prices[row["model"]]
            row["cost"] = (row.get("tokens_read", 0) * read + row.get("tokens_written", 0) * written) / 1e6
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        totals = {
            key: sum(row.get(key, 0) for row in own) for key in ("seconds", "tokens_read", "tokens_written", "cost")
        }
        told = f"{totals['seconds']:.0f} s, {totals['tokens_read']:,} tokens read, {totals['tokens_written']:,} written"
        say(f"  {name}: {told}" + (f", cost {totals['cost']:.4f}" if name in prices else ""))
    return rows


def decision(
    task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]], models: Sequence[str], previous: bool
) -> dict[str, str]:
    """The best model by a task, and how the models differ there."""
    metric = main_metric(task)
    values = {name: [one["scores"][metric] for one in found] for name, found in results.items()}
    best = max(models, key=lambda name: sum(values[name]))
    groups = [item.group for item in items] if task.group else None
    return {"best": best, "verdict": verdict(models, values, groups, previous)}


def headlines(scores: Sequence[Score], model: str) -> dict[str, float]:
    """Figures of one model for the run's manifest."""
    return {
        f"{score.task} {score.metric}".replace(" ", "_"): round(score.value, 4)
        for score in scores
        if score.model == model
    }


def _cell(score: Score | None) -> str:
    if score is None or not score.n:
        return "-"
    interval = f" ({score.low:.3f} to {score.high:.3f})" if score.low is not None and score.high is not None else ""
    return f"{score.value:.3f}{interval}"
