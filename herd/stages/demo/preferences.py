"""Preferences: reference answers against hard negatives, including the model's own mistakes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from herd.config import settings
from herd.data.rows import read_rows, write_rows
from herd.demo.preferences import for_dpo, make_pairs
from herd.errors import DataError
from herd.evals.answers import f1_scores, prompt_of, question_text
from herd.log import say
from herd.post.prompts import spread
from herd.post.sampling import sample_answers
from herd.run import open_run
from herd.types import SamplingParams


@settings
class PreferencesSettings:
    """Make preference pairs: another name's docstring, a corrupted signature, the model's own mistakes."""

    out: Path
    """Run folder to write."""
    checkpoint: Path
    """The chat model that is sampled: a checkpoint or a run folder of `herd sft`."""
    questions: Path
    """Run folder of `herd demo questions`."""
    max_prompts: int = 1200
    """Most questions about trained facts, in wordings that SFT does not contain."""
    max_sampled: int = 384
    """Most of these that the model answers; the others get negatives without sampling."""
    max_heldout: int = 96
    """Most questions about held-out groups, to test a reward model."""
    samples: int = 4
    """Answers sampled for each question."""
    temperature: float = 0.9
    """Temperature of these answers."""
    answer_tokens: int = 40
    """Longest answer, in tokens."""
    seed: int = 0
    """Seed of the sampling."""
    engine: str | None = None
    """Address (http://HOST/v1) of an OpenAI-compatible endpoint that serves `checkpoint` and samples in its place."""

    def __post_init__(self):
        if min(self.max_prompts, self.samples, self.answer_tokens) < 1 or self.max_heldout < 0:
            raise ValueError("max_prompts, samples and answer_tokens must be at least 1, max_heldout at least 0")
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0: the samples have to differ")


def run(settings: PreferencesSettings) -> Path:
    """Write `pairs.jsonl` (trained groups), `own.jsonl` (those for DPO: the model's own samples, and refusals),
    `heldout.jsonl` (held-out groups) and `differing.jsonl` (the prompts for rejection sampling: those whose answers
    differ in quality)."""
    inputs = {"checkpoint": settings.checkpoint, "questions": settings.questions}
    with open_run(settings.out, stage="demo preferences", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=4000 * (settings.max_prompts + settings.max_heldout))
        names = ("prompts", "train", "unknown", "eval_heldout")
        rows = {name: read_questions(settings.questions, name) for name in names}
        prompts = spread(rows["prompts"], settings.max_prompts)
        sampled = spread(prompts, settings.max_sampled)
        unknown = spread(rows["unknown"], max(1, settings.max_sampled // 4))
        heldout = rows["eval_heldout"][: settings.max_heldout]
        asked = [*sampled, *unknown, *heldout]
        params = SamplingParams(
            temperature=settings.temperature,
            top_p=1.0,
            max_tokens=settings.answer_tokens,
            n=settings.samples,
            seed=settings.seed,
        )
        conversations, state = [prompt_of(row) for row in asked], run.path / "state"
        answers = sample_answers(settings.checkpoint, conversations, params, state, engine=settings.engine)
        said = {question_text(row): texts for row, texts in zip(asked, answers, strict=True)}
        pool = [*rows["prompts"], *rows["train"]]
        trained = [*prompts, *unknown]
        pairs = make_pairs(trained, [said.get(question_text(row), []) for row in trained], pool)
        tests = make_pairs(heldout, [said[question_text(row)] for row in heldout], [*pool, *rows["eval_heldout"]])
        if not pairs:
            raise DataError(f"{settings.questions}: no pair could be made of its {len(asked)} questions")
        write_rows(run.path / "pairs.jsonl", pairs)
        write_rows(run.path / "own.jsonl", for_dpo(pairs))
        write_rows(run.path / "heldout.jsonl", tests)
        differing = [row for row, texts in zip(asked, answers, strict=True) if row in sampled and _differ(texts, row)]
        write_rows(run.path / "differing.jsonl", differing or sampled)
        say(f"  {len(differing):,} of {len(sampled):,} prompts have answers of which some are better than others")
        kinds = Counter(pair["kind"] for pair in pairs)
        say(f"  {len(pairs):,} pairs: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()))
        run.finish({"pairs": len(pairs), "heldout_pairs": len(tests), "differing": len(differing), **kinds})
    return run.path


def _differ(texts: list[str], row: dict) -> bool:
    scores = f1_scores(texts, [row] * len(texts))
    return max(scores) > min(scores)


def read_questions(folder: Path, name: str) -> list[dict]:
    """The rows of `<name>.jsonl` of a questions run.

    Raises:
        DataError: the run holds no questions.
    """
    file = folder / f"{name}.jsonl"
    if not file.exists():
        raise DataError(f"{file}: missing; expected the run folder of `herd demo questions` that found enough to ask")
    return [row for _, row in read_rows(file)]
