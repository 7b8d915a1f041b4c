"""Reject: of K answers to each question the reward model keeps the best, as conversations for the next SFT."""

from __future__ import annotations

import json
from pathlib import Path

from herd.config import settings
from herd.demo.questions import write_rows
from herd.evals.qa import prompt_of
from herd.log import progress, say
from herd.post.reject import best_of, keep_best, selection_figures
from herd.post.reward import RewardModel
from herd.post.sampling import sample_answers
from herd.run import Run, atomic_write, open_run
from herd.stages.preferences import read_questions, spread
from herd.types import SamplingParams

_CHUNK_QUESTIONS = 128  # scored together and kept together


@settings
class RejectSettings:
    """Rejection sampling: draw K answers to each question, keep the one with the highest reward."""

    out: Path
    """Run folder to write."""
    checkpoint: Path
    """The chat model that is sampled."""
    reward: Path
    """The reward model that chooses."""
    questions: Path
    """Run folder of `herd questions`; its `prompts.jsonl` are asked."""
    samples: int = 8
    """K, the answers drawn for each question."""
    max_prompts: int = 512
    """Questions asked."""
    keep: float = 0.7
    """Share (0 to 1) of the chosen answers that is kept, those of the highest reward."""
    references: bool = True
    """Whether the questions' own training conversations are mixed in, so that nothing learned is lost."""
    temperature: float = 0.7
    """Temperature of the answers."""
    answer_tokens: int = 40
    """Longest answer, in tokens."""
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


def run(settings: RejectSettings) -> Path:
    """Write `chosen.jsonl` (the best answers with their reward) and `conversations.jsonl` (what to train on)."""
    inputs = {"checkpoint": settings.checkpoint, "reward": settings.reward, "questions": settings.questions}
    with open_run(settings.out, stage="reject", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=6000 * settings.max_prompts)
        questions = spread(read_questions(settings.questions, "prompts"), settings.max_prompts)
        params = SamplingParams(
            temperature=settings.temperature,
            top_p=1.0,
            max_tokens=settings.answer_tokens,
            n=settings.samples,
            seed=settings.seed,
        )
        prompts = [prompt_of(question) for question in questions]
        state = run.path / "state"
        answers = sample_answers(settings.checkpoint, prompts, params, state, engine=settings.engine)
        rewards = _rewards(run, settings, questions, answers)
        chosen = keep_best(best_of(questions, answers, rewards), settings.keep)
        figures = selection_figures(questions, answers, rewards)
        write_rows(run.path / "chosen.jsonl", chosen)
        references = read_questions(settings.questions, "train") if settings.references else []
        write_rows(run.path / "conversations.jsonl", [*references, *chosen])
        say(
            f"  best of {settings.samples} by reward: F1 {figures['f1_of_chosen']:.3f} to the references, a random one "
            f"{figures['f1_of_samples']:.3f}, the best there is {figures['f1_of_best']:.3f}"
        )
        run.finish(figures | {"questions": len(questions), "kept": len(chosen)})
    return run.path


def _rewards(run: Run, settings: RejectSettings, questions: list[dict], answers: list[list[str]]) -> list[list[float]]:
    """The reward of every answer to every question; scored questions are kept in parts of a fixed size."""
    model = RewardModel(settings.reward)
    rewards: list[list[float]] = []
    with progress("score", total=len(questions) * settings.samples, unit="answers") as bar:
        for start in range(0, len(questions), _CHUNK_QUESTIONS):
            part = run.path / "state" / f"rewards-{start:06d}.json"
            batch = list(zip(questions, answers, strict=True))[start : start + _CHUNK_QUESTIONS]
            if not part.exists():
                pairs = [
                    [*prompt_of(question), {"role": "assistant", "content": text}]
                    for question, texts in batch
                    for text in texts
                ]
                scores = iter(model.score(pairs))
                atomic_write(part, json.dumps([[next(scores) for _ in texts] for _, texts in batch]))
            rewards += json.loads(part.read_text(encoding="utf-8"))
            bar.advance(len(batch) * settings.samples)
    return rewards
