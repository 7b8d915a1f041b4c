"""Reject: rejection sampling; of K answers to each prompt a reward model or a verifier keeps the best, for SFT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.rows import read_rows, write_rows
from herd.errors import DataError
from herd.evals.answers import prompt_of
from herd.log import progress, say
from herd.post.prompts import apart_from, part_of, read_prompts, spread
from herd.post.reject import best_of, keep_best, selection_figures, verified_figures, where_samples_differ
from herd.post.reward import RewardModel
from herd.post.sampling import sample_answers
from herd.post.verify import RIGHT, Verifier, verified, verifier_of
from herd.run import Run, atomic_write, open_run
from herd.types import SamplingParams

_CHUNK_QUESTIONS = 128  # scored together and kept together


@settings
class RejectSettings:
    """Rejection sampling: sample K answers to each prompt, keep the one with the highest reward."""

    out: Path
    """Run folder to write."""
    checkpoint: Path
    """The chat model that is sampled."""
    reward: Path | None = None
    """The reward model that chooses. Without one the verifier does: it takes the first correct answer."""
    prompts: Path
    """Prompts: JSONL or Parquet rows with `messages` or `prompt`; a reference `answer` or checks are optional. Rows
    with `answers` (of `herd rounds prefer`) are not sampled again."""
    samples: int = 8
    """K, the number of answers sampled for each prompt."""
    max_prompts: int = 512
    """Most prompts used, spread evenly over the file."""
    part: tuple[float, float] = (0.0, 1.0)
    """Which prompts to use, by a range of their hashes (0 to 1), so that other uses can take other parts."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: prompts that occur in them are left out."""
    verifier: Verifier | None = None
    """How the choice is measured: `checks` or `answer`; default: what all rows have. It chooses only without a reward
    model."""
    only_differing: bool = False
    """Leave out prompts whose samples are all the same text (or, if the verifier chooses, equally right): there is
    nothing to choose."""
    keep: float = 0.7
    """Share (0 to 1) of the chosen answers to keep, those with the highest reward."""
    references: Path | None = None
    """Conversations mixed in unchanged, against forgetting."""
    temperature: float = 0.7
    """Temperature of the answers."""
    answer_tokens: int = 40
    """Longest answer, in tokens."""
    whole_only: bool = False
    """Count answers that ran into answer_tokens as none: SFT on them would teach to stop midway."""
    seed: int = 1
    """Seed of the sampling."""
    engine: str | None = None
    """Address (http://HOST/v1) of an OpenAI-compatible endpoint that serves `checkpoint` and samples in its place."""

    def __post_init__(self):
        if self.samples < 2:
            raise ValueError("samples must be at least 2: there has to be something to choose from")
        if not 0 < self.keep <= 1:
            raise ValueError("keep must be above 0 and at most 1")
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0: the samples have to differ")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError("part must be two ascending shares of 0 to 1")


def run(settings: RejectSettings) -> Path:
    """Write `chosen.jsonl` (the best answers with their reward) and `conversations.jsonl` (what to train on)."""
    names = ("checkpoint", "reward", "prompts", "references")
    inputs: dict[str, Any] = {name: getattr(settings, name) for name in names} | {"benchmarks": [*settings.benchmarks]}
    with open_run(settings.out, stage="reject", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=6000 * settings.max_prompts)
        everything = apart_from(read_prompts(settings.prompts, 10**9), settings.benchmarks)
        questions = spread(part_of(everything, *settings.part), settings.max_prompts)
        if not questions:
            raise DataError(f"{settings.prompts}: no prompt is left in part {settings.part}")
        verifier = settings.verifier or verifier_of(questions)
        if settings.reward is None and verifier is None:
            raise DataError(f"{settings.prompts}: no verifier fits all rows (checks, or an answer); give reward=")
        answers = _answers(run, settings, questions)
        differing: Sequence[Sequence[Any]] = answers
        if settings.reward is None and verifier is not None:
            rewards = [verified(verifier, row, texts) for row, texts in zip(questions, answers, strict=True)]
            best = [row for row in best_of(questions, answers, rewards) if row["score"] >= RIGHT]
            figures, differing = verified_figures(rewards), rewards
            summary = _share_right(figures)
        else:
            rewards = _rewards(run, settings, questions, answers)
            best = best_of(questions, answers, rewards)
            figures = selection_figures(questions, answers, rewards, verifier or "answer")
            summary = f"each the best of {settings.samples} by reward; {_worth(figures)}"
        if settings.only_differing:
            best = where_samples_differ(best, questions, differing)
            say(f"  {len(best):,} of {len(questions):,} prompts got answers that differ")
        chosen = keep_best(best, settings.keep)
        if not chosen and settings.references is None:
            raise DataError(f"{settings.prompts}: no answer is left to keep; raise `samples`, or use easier prompts")
        write_rows(run.path / "chosen.jsonl", chosen)
        references = [row for _, row in read_rows(settings.references)] if settings.references else []
        write_rows(run.path / "conversations.jsonl", [*references, *chosen])
        say(f"  {len(chosen):,} answers kept, {summary}")
        run.finish(figures | {"questions": len(questions), "kept": len(chosen)})
    return run.path


def _answers(run: Run, settings: RejectSettings, questions: list[dict]) -> list[list[str]]:
    """The answers given in the rows, or newly sampled ones."""
    if given := sum("answers" in question for question in questions):
        if given < len(questions):
            raise DataError(
                f"{settings.prompts}: {given} of {len(questions)} rows have `answers`; expected all or none"
            )
        return [list(question["answers"]) for question in questions]
    params = SamplingParams(
        temperature=settings.temperature,
        top_p=1.0,
        max_tokens=settings.answer_tokens,
        n=settings.samples,
        seed=settings.seed,
    )
    prompts: list[Any] = [prompt_of(question) for question in questions]
    return sample_answers(
        settings.checkpoint, prompts, params, run.path / "state", engine=settings.engine, whole_only=settings.whole_only
    )


def _share_right(figures: dict[str, float]) -> str:
    return (
        f"each the first that the verifier finds right: {figures['right_of_samples']:.1%} of all are, and "
        f"{figures['right_of_best']:.1%} of the prompts have one"
    )


def _worth(figures: dict[str, float]) -> str:
    """The gain of the selection as text: by the verifier if rows have what it needs, else by reward alone."""
    unit, what = next(one for one in _UNITS if f"{one[0]}_of_chosen" in figures)
    chosen, random, best = (figures.get(f"{unit}_of_{which}") for which in ("chosen", "samples", "best"))
    summary = f"{what} {chosen:.3f}, a random one {random:.3f}" + (f", the best there is {best:.3f}" if best else "")
    if "gain" not in figures:
        return summary
    gain, low, high = figures["gain"], figures["gain_low"], figures["gain_high"]
    word = "better" if low > 0 else "worse" if high < 0 else "not clearly different"
    where = f"on {figures['gain_prompts']} prompts whose samples differ"
    return f"{summary}; {where} {word} than a random pick ({gain:+.3f}, {low:+.3f} to {high:+.3f})"


_UNITS = (("f1", "F1 to the references"), ("checks", "checks that hold"), ("reward", "mean reward"))


def _rewards(run: Run, settings: RejectSettings, questions: list[dict], answers: list[list[str]]) -> list[list[float]]:
    """The reward of every answer to every question, saved in parts of a fixed size."""
    assert settings.reward is not None
    model = RewardModel(settings.reward)
    rewards: list[list[float]] = []
    with progress("score", total=len(questions) * settings.samples, unit="answers") as bar:
        for start in range(0, len(questions), _CHUNK_QUESTIONS):
            part = run.path / "state" / f"rewards-{start:06d}.json"
            batch = list(zip(questions, answers, strict=True))[start : start + _CHUNK_QUESTIONS]
            if not part.exists():
                pairs: list[Any] = [
                    [*prompt_of(question), {"role": "assistant", "content": text}]
                    for question, texts in batch
                    for text in texts
                ]
                scores = iter(model.score(pairs))
                atomic_write(part, json.dumps([[next(scores) for _ in texts] for _, texts in batch]))
            rewards += json.loads(part.read_text(encoding="utf-8"))
            bar.advance(len(batch) * settings.samples)
    return rewards
