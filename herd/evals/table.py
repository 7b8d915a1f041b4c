"""What an evaluation says at its end: a table, the differences between models in words, the figures of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from herd.evals.asking import LOWER, RETRIEVED, Result, answered, main_metric
from herd.evals.statistics import Comparison, benjamini_hochberg, compared
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


def show_left_out(task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]]) -> None:
    """Which questions a model was not asked, or with fewer examples, for they do not fit into its context."""
    for name, found in results.items():
        whys = {item.number: one["left_out"] for item, one in zip(items, found, strict=True) if "left_out" in one}
        if whys:
            may = task.shots and not task.drop_shots
            say(
                f"    left out: {len(whys)} of {len(items)} questions, beyond the context of {name}: {_listed(whys)} "
                f"in samples.jsonl (the first: {next(iter(whys.values()))})"
                + ("; `drop_shots: true` in the task's file would ask them with fewer examples" if may else "")
            )
        fewer = [item.number for item, one in zip(items, found, strict=True) if "shots" in one and one["scores"]]
        if fewer:
            least = min(one["shots"] for one in found if "shots" in one and one["scores"])
            say(
                f"    fewer examples: {len(fewer)} of {len(items)} questions to {name}, down to {least} instead of "
                f"{task.shots}, to fit into its context: {_listed(fewer)} in samples.jsonl"
            )


def _listed(numbers: Iterable[int]) -> str:
    first = list(numbers)
    more = f" and {len(first) - 10} more" if len(first) > 10 else ""
    return f"item{'s' * (len(first) > 1)} {', '.join(map(str, first[:10]))}{more}"


def _compared(
    task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]], after: str, before: str
) -> Comparison | None:
    """Two models on the questions that both were asked; None where there are none."""
    metric, places = main_metric(task), answered(results, (after, before))
    ours, theirs = ([results[name][place]["scores"][metric] for place in places] for name in (after, before))
    return compared(ours, theirs, [items[place].group for place in places] if task.group else None) if places else None


def _word(task: Task, found: Comparison) -> str:
    if main_metric(task) in LOWER:
        return {"better": "worse", "worse": "better"}.get(found.word, found.word)
    return found.word


def _pairs(models: Sequence[str], previous: bool) -> list[tuple[str, str]]:
    return list(pairwise(models)) if previous else [(models[0], other) for other in models[1:]]


def verdict(
    task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]], models: Sequence[str], previous: bool
) -> str:
    """How models differ on the same questions, by paired 95 % intervals: each from the first, or from the one before.

    Where the retrieved answer was scored too, the last model is held against it.
    """
    parts = []
    for before, after in _pairs(models, previous):
        found = _compared(task, items, results, after, before)
        what = f"{after} {'after' if previous else 'against'} {before}"
        if found is None:
            parts.append(f"{what}: no question fits into the context of both")
            continue
        change = found.difference
        parts.append(f"{what}: {_word(task, found)} ({change.value:+.3f}, {change.low:+.3f} to {change.high:+.3f})")
    if RETRIEVED in results and (found := _compared(task, items, results, models[-1], RETRIEVED)):
        last = found.difference
        word = "above" if last.low > 0 else "below" if last.high < 0 else "not clearly different from"
        parts.append(f"{models[-1]}: {word} the {RETRIEVED} ({last.value:+.3f}, {last.low:+.3f} to {last.high:+.3f})")
    return "; ".join(parts)


def comparisons(
    task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]], models: Sequence[str], previous: bool
) -> list[dict[str, Any]]:
    """Each pair of models on the same questions of a task: difference, paired test, smallest detectable difference."""
    rows = []
    for before, after in _pairs(models, previous):
        found = _compared(task, items, results, after, before)
        if found is None:
            continue
        row: dict[str, Any] = {"task": task.name, "metric": main_metric(task), "model": after, "against": before}
        row |= {"n": found.difference.n}
        row |= {"difference": found.difference.value, "low": found.difference.low, "high": found.difference.high}
        rows.append(row | {"p": found.p, "detectable": found.detectable, "says": _word(task, found)})
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
        if cut := sum(row.get("answers_cut", 0) for row in own):
            say(f"    {cut} free answer{'s' * (cut > 1)} ended where the context of {name} ends, before max_tokens")
    return rows


def decision(
    task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]], models: Sequence[str], previous: bool
) -> dict[str, Any]:
    """The best model by a task, on the questions that all were asked, and how the models differ there: the verdict in
    words, and of the last model and the one it is compared with the `gain` and the questions that moved."""
    metric, places = main_metric(task), answered(results, models)
    sign = -1 if metric in LOWER else 1
    values = {name: [results[name][place]["scores"][metric] for place in places] for name in models}
    best = max(models, key=lambda name: sign * sum(values[name]))
    told: dict[str, Any] = {"verdict": verdict(task, items, results, models, previous)}
    if not places:
        return told
    for before, after in _pairs(models, previous)[-1:]:
        found = _compared(task, items, results, after, before)
        if found is not None:
            low, high = sorted((sign * found.difference.low, sign * found.difference.high))
            told |= {"gain": sign * found.difference.value, "gain_low": low, "gain_high": high}
            told |= moved(values[before], values[after])
    return {"best": best} | told


_RIGHT = 1 - 1e-6


def moved(before: Sequence[float], after: Sequence[float]) -> dict[str, int]:
    """How many questions are fixed, still wrong and newly broken, from what two models score (1 is right)."""
    was, now = [one >= _RIGHT for one in before], [one >= _RIGHT for one in after]
    pairs = list(zip(was, now, strict=True))
    counts = {"still_right": (True, True), "fixed": (False, True), "still_wrong": (False, False)}
    return {name: pairs.count(what) for name, what in {**counts, "newly_broken": (True, False)}.items()}


def headlines(scores: Sequence[Score], model: str) -> dict[str, float]:
    """Figures of one model for the run's manifest."""
    return {
        f"{score.task} {score.metric}".replace(" ", "_"): round(score.value, 4)
        for score in scores
        if score.model == model and (score.n or not score.left_out)
    }


def _cell(score: Score | None) -> str:
    if score is None or not score.n:
        return "-"
    interval = f" ({score.low:.3f} to {score.high:.3f})" if score.low is not None and score.high is not None else ""
    return f"{score.value:.3f}{interval}"
