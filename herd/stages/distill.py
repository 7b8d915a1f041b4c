"""Distil: a smaller model learns a larger one's probabilities on texts, its answers, or its probabilities on-policy."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from herd.config import settings
from herd.data.conversations import load_conversations, pack_conversations
from herd.data.rows import write_rows
from herd.data.shards import Documents, open_trained_with
from herd.errors import ConfigError
from herd.evals.answers import prompt_of
from herd.evals.watching import WatchSettings, watched_by, watched_inputs
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.log import amount, say
from herd.model.llama import LlamaForCausalLM
from herd.parallel.launch import num_processes
from herd.post.prompts import apart_from, origin_of, read_prompts
from herd.post.sampling import sample_answers
from herd.rollout.sample import Limits
from herd.rollout.source import fitting
from herd.rollout.taught import OnPolicy
from herd.train.job import Job, training
from herd.train.metrics import last_means
from herd.train.objectives import distill, next_token
from herd.train.settings import TuneSettings
from herd.train.sources import Made
from herd.train.teacher import ask, is_taught, read_taught, taught_bytes
from herd.types import SamplingParams


@settings
class DistillSettings(TuneSettings):
    """Let a model learn from a teacher."""

    checkpoint: Path
    """The student to start from, its tokenizer beside it."""
    teacher: Path
    """The checkpoint to learn from; with the same vocabulary, except for `how=answers`."""
    how: Literal["probabilities", "answers", "own_answers"] = "probabilities"
    """Learn the teacher's probabilities on given texts, its answers to `prompts` (sequence-level distillation), or its
    probabilities on the student's own answers to them (on-policy)."""
    shards: Path | None = None
    """Documents to learn probabilities on: a run folder of `herd pack`. Either these or conversations."""
    conversations: list[Path] = field(default_factory=list)
    """JSONL or Parquet files (or folders of them) of `messages`; only the answers are learned."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each source; by its tokens when empty."""
    top: int = 16
    """Number of the teacher's likeliest tokens kept per position (6 bytes each on disk during the run)."""
    prompts: Path | None = None
    """Prompts, for answers: JSONL or Parquet rows with `messages` or `prompt`."""
    max_prompts: int = 100_000
    """Most prompts used, spread evenly over the file."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: prompts that occur in them are left out."""
    answer_tokens: int = 128
    """Longest answer, in tokens."""
    samples: int = 1
    """The teacher's answers to each prompt."""
    temperature: float = 0.7
    """Temperature of the teacher's answers; the student's are sampled at 1."""
    steps: int = 100
    """Steps on the student's own answers."""
    prompts_per_step: int = 32
    """Prompts that the student answers for a step."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """Evaluations of the student during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.shards is not None) + bool(self.conversations)
        if self.how == "probabilities" and (given != 1 or self.prompts is not None):
            raise ValueError("give what to learn on: either `shards` or `conversations` (`prompts` are for answers)")
        if self.how != "probabilities" and (given or self.prompts is None):
            raise ValueError(f"how={self.how} learns on answers to `prompts`; leave shards and conversations out")
        if self.how == "own_answers" and self.epochs != 1.0:
            raise ValueError("epochs is not for own_answers, which goes by `steps`")
        if min(self.top, self.answer_tokens, self.samples, self.steps, self.prompts_per_step) < 1:
            raise ValueError("top, answer_tokens, samples, steps and prompts_per_step must be at least 1")


def run(settings: DistillSettings) -> Path:
    """Ask the teacher, train, and write `checkpoint/`."""
    names = ("teacher", "checkpoint", "shards", "conversations", "prompts")
    inputs = {name: getattr(settings, name) for name in names} | {"benchmarks": [*settings.benchmarks]}
    inputs |= watched_inputs(settings.watch)
    with training(settings, "distill", inputs) as job:
        if job.finished:
            return settings.out
        student, teacher = job.start_from(settings.checkpoint, whole_rows=True), open_checkpoint(settings.teacher)
        if settings.how != "answers":
            _check_vocabularies(student, teacher, settings.top)
        learn = {"probabilities": _probabilities, "answers": _answers, "own_answers": _own_answers}[settings.how]
        job.finish(learn(job, settings, student, teacher))
    return settings.out


def _probabilities(job: Job, settings: DistillSettings, student: Checkpoint, teacher: Checkpoint) -> dict[str, Any]:
    """Learn the teacher's next-token probabilities on given texts."""
    if settings.shards is not None:
        trained = open_trained_with(settings.shards / "train", job.tokenizer.fingerprint, str(student.place))
    else:
        trained = load_conversations(settings.conversations, job.tokenizer, settings.batch.row_tokens)
    folder = job.run.path / "state" / "teacher"
    if not is_taught(folder):
        _ask(job, teacher, trained, folder, settings.top)
    taught = read_taught(folder, trained, settings.top)
    watch, mixture = watched_by(job, settings.watch), settings.mixture
    return job.learn(distill, trained, epochs=settings.epochs, mixture=mixture, columns=taught.columns, watch=watch)


def _answers(job: Job, settings: DistillSettings, student: Checkpoint, teacher: Checkpoint) -> dict[str, Any]:
    """Learn the teacher's answers, which are kept in answers.jsonl."""
    _check_alone()
    rows = _prompts(settings)
    params = SamplingParams(
        temperature=settings.temperature,
        top_p=1.0,
        max_tokens=settings.answer_tokens,
        n=settings.samples,
        seed=settings.seed,
    )
    asked = [prompt_of(row) for row in rows]
    texts = sample_answers(settings.teacher, asked, params, job.run.path / "state" / "teacher", label="teacher")
    talks = [
        {"messages": [*prompt, {"role": "assistant", "content": text}], "source": "teacher"} | origin_of(row)
        for row, prompt, several in zip(rows, asked, texts, strict=True)
        for text in dict.fromkeys(several)
        if text
    ]
    say(f"  {amount(len(talks))} answers of the teacher, {len(rows) * settings.samples - len(talks):,} empty or twice")
    write_rows(job.run.path / "answers.jsonl", talks)
    given = ((f"answer {number}", row) for number, row in enumerate(talks, 1))
    sources = pack_conversations(given, job.tokenizer, settings.batch.row_tokens)
    watch = watched_by(job, settings.watch)
    return {"answers": len(talks)} | job.learn(next_token, sources, epochs=settings.epochs, watch=watch)


def _own_answers(job: Job, settings: DistillSettings, student: Checkpoint, teacher: Checkpoint) -> dict[str, Any]:
    """Learn the teacher's next-token probabilities on the student's own answers."""
    _check_alone()
    limits = Limits(settings.answer_tokens, settings.batch.row_tokens)
    rows = fitting(_prompts(settings), job.tokenizer, limits)
    model, guide = job.model, teacher.load().to(job.device).eval()
    assert isinstance(model, LlamaForCausalLM) and isinstance(guide, LlamaForCausalLM)
    sizes = (settings.prompts_per_step, settings.top, settings.batch.micro_tokens, settings.seed)
    make = OnPolicy(model, guide, job.tokenizer, rows, limits, *sizes)
    guess = settings.prompts_per_step * min(settings.batch.row_tokens, 2 * settings.answer_tokens)
    row_tokens, state = settings.batch.row_tokens, job.run.path / "state"
    source = Made(state, make, row_tokens=row_tokens, step_tokens=guess, varying=True, name="own answers")
    job.train(distill, source, settings.steps, hooks=watched_by(job, settings.watch)(source))
    return {"steps": settings.steps} | last_means(job.run.path)


def _prompts(settings: DistillSettings) -> list[dict]:
    assert settings.prompts is not None
    return apart_from(read_prompts(settings.prompts, settings.max_prompts), settings.benchmarks)


def _ask(job: Job, teacher: Checkpoint, sources: dict[str, Documents], folder: Path, top: int) -> None:
    job.run.need(disk_bytes=taught_bytes(sources, top))
    model, batch = teacher.load().to(job.device), job.settings.batch
    sizes = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens, **job.placement.rows}
    ask(model, sources, folder, k=top, **sizes)


def _check_alone() -> None:
    if num_processes() > 1:
        raise ConfigError("answers are sampled in one process; start `herd distill` without torchrun, or use `shards`")


def _check_vocabularies(student: Checkpoint, teacher: Checkpoint, top: int) -> None:
    sizes = student.config.vocab_size, teacher.config.vocab_size
    if sizes[0] != sizes[1] or student.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
        raise ConfigError(
            f"{teacher.place} (vocabulary of {sizes[1]:,}) and {student.place} ({sizes[0]:,}) have different "
            "vocabularies, so probabilities cannot be compared; take a student made with the teacher's tokenizer, or "
            "learn its answers (how=answers)"
        )
    if top > sizes[0]:
        raise ConfigError(f"top is {top:,}, and the vocabulary has {sizes[0]:,} tokens")
