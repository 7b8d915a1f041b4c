"""Judge: which model's answers a judge prefers, each pair in both orders, with win rates and the judge's biases."""

from __future__ import annotations

from dataclasses import field
from itertools import combinations
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.rows import read_rows, write_rows
from herd.errors import ConfigError, DataError
from herd.evals.judged_page import judged_page
from herd.evals.judging import PROMPT, bradley_terry, duels_of, judged, pair_figures
from herd.infer.judge import JudgeModel, asking
from herd.log import say
from herd.run import atomic_write, open_run


@settings
class JudgeSettings:
    """Let a model judge pairs of free answers from evaluations."""

    out: Path
    """Run folder to write."""
    path: list[Path]
    """Run folders of `herd evaluate`, or files like their `samples.jsonl`: rows with task, item, model, question and
    answer."""
    judge: JudgeModel = field(default_factory=JudgeModel)
    models: list[str] | None = None
    """Models to compare; default: all."""
    tasks: list[str] | None = None
    """Tasks to take answers from; default: all with free answers."""
    prompt: Path | None = None
    """The judge's prompt, a Jinja template over question, a, b and reference that asks for [[A]], [[B]] or [[C]];
    default: one that asks which answer is more correct and helpful."""
    limit: int | None = None
    """Most pairs of answers, spread over the questions."""

    def __post_init__(self) -> None:
        if not self.judge.endpoint and not self.judge.checkpoint:
            raise ValueError("judge: give judge.endpoint or judge.checkpoint")
        if self.limit is not None and self.limit < 1:
            raise ValueError("limit must be at least 1")


def run(settings: JudgeSettings) -> Path:
    """Write `judgements.jsonl` (both verdicts of each pair), `pairs.jsonl` (win rates), `ratings.jsonl` and the page,
    `judged.html`.

    Raises:
        DataError: no question has two answers, or no verdict of the judge can be parsed.
    """
    files = [path / "samples.jsonl" if path.is_dir() else path for path in settings.path]
    inputs = {"samples": files, "judge": settings.judge.checkpoint, "prompt": settings.prompt}
    with open_run(settings.out, stage="judge", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        samples = _samples(files)
        samples = [row for row in samples if settings.tasks is None or row["task"] in settings.tasks]
        models = _models(settings, samples)
        duels = duels_of(samples, models)
        if settings.limit and len(duels) > settings.limit:
            say(f"  {settings.limit:,} of {len(duels):,} pairs of answers are judged (limit)")
            duels = [duels[place * len(duels) // settings.limit] for place in range(settings.limit)]
        if not duels:
            raise DataError(f"{files[0]}: no question has free answers of two of {', '.join(models)}")
        template = settings.prompt.read_text(encoding="utf-8") if settings.prompt else PROMPT
        with asking(settings.judge) as ask:
            rows = judged(duels, ask, template)
        write_rows(run.path / "judgements.jsonl", rows)
        if all(row["score"] is None for row in rows):
            raise DataError(
                f"no answer of the judge holds [[A]], [[B]] or [[C]]; the first: {rows[0]['judge'][0][:200]!r}"
            )
        pairs = _pairs(rows, models)
        ratings = bradley_terry(rows, models)
        write_rows(run.path / "pairs.jsonl", pairs)
        write_rows(run.path / "ratings.jsonl", ratings)
        name = str(settings.judge.endpoint or settings.judge.checkpoint)
        atomic_write(run.path / "judged.html", judged_page(name, rows, pairs, ratings))
        _tell(pairs, ratings)
        read = [row for row in rows if row["score"] is not None]
        flips = sum(row["flipped"] for row in read) / len(read)
        run.finish({"best": ratings[0]["model"], "pairs": len(rows), "flip_rate": round(flips, 4)})
    return run.path


def _samples(files: list[Path]) -> list[dict[str, Any]]:
    wanted, samples = ("task", "item", "model", "question", "answer"), []
    for file in files:
        for place, row in read_rows(file):
            if lacking := [name for name in wanted if name not in row]:
                raise DataError(f"{place}: has no {', '.join(lacking)}; expected rows of an evaluation's samples.jsonl")
            samples.append(row)
    return samples


def _models(settings: JudgeSettings, samples: list[dict[str, Any]]) -> list[str]:
    known = list(dict.fromkeys(row["model"] for row in samples))
    if missing := set(settings.models or ()) - set(known):
        raise ConfigError(f"models: no answers of {min(missing)}; the files have answers of {', '.join(known)}")
    return settings.models or known


def _pairs(rows: list[dict[str, Any]], models: list[str]) -> list[dict[str, Any]]:
    results = []
    for pair in combinations(models, 2):
        own = [row for row in rows if tuple(row["models"]) == pair]
        if own:
            results.append({"model": pair[0], "against": pair[1]} | pair_figures(own))
    return results


def _tell(pairs: list[dict[str, Any]], ratings: list[dict[str, Any]]) -> None:
    for one in pairs:
        what = f"{one['model']} against {one['against']}"
        if not one["n"]:
            say(f"  {what}: no verdict could be read")
            continue
        parts = [f"{what}: wins {one['win_rate']:.1%} ({one['low']:.1%} to {one['high']:.1%}) of {one['n']}"]
        parts += [f"flipped with the order {one['flip_rate']:.1%}"]
        parts += [f"longer answer won {one['longer_won']:.0%}"] if one["longer_won"] is not None else []
        parts += [f"at equal length {one['win_rate_at_equal_length']:.1%}"]
        parts += [f"{one['unreadable']} verdicts unreadable"] if one["unreadable"] else []
        say("  " + "; ".join(parts))
    for one in ratings:
        say(f"    {one['model']}: {one['points']:+.0f} points ({one['low']:+.0f} to {one['high']:+.0f})")
