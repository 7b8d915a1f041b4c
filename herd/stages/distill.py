"""Distil: a smaller model learns what a larger one of the same vocabulary finds likely after each token."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from herd.config import settings
from herd.data.conversations import load_conversations
from herd.data.shards import Documents, open_trained_with
from herd.errors import ConfigError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.train.job import Job, training
from herd.train.objectives import distill
from herd.train.settings import TuneSettings
from herd.train.teacher import ask, is_taught, read_taught, taught_bytes


@settings
class DistillSettings(TuneSettings):
    """Let a model learn from a teacher's probabilities."""

    checkpoint: Path
    """The student to start from, its tokenizer beside it."""
    teacher: Path
    """The checkpoint that it learns from, of the same vocabulary."""
    shards: Path | None = None
    """Documents to learn on: a run folder of `herd pack`. Either these or conversations."""
    conversations: list[Path] = field(default_factory=list)
    """JSONL or Parquet files (or folders of them) of `messages`; only the answers are learned."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each source; by its tokens when empty."""
    top: int = 16
    """The teacher's likeliest tokens that are kept for each place (6 bytes each on disk while the run goes)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.shards is None) == (not self.conversations):
            raise ValueError("give what to learn on: either `shards` or `conversations`")
        if self.top < 1:
            raise ValueError("top must be at least 1")


def run(settings: DistillSettings) -> Path:
    """Ask the teacher once, train, and write `checkpoint/`."""
    inputs = {name: getattr(settings, name) for name in ("teacher", "checkpoint", "shards", "conversations")}
    with training(settings, "distill", inputs) as job:
        if job.finished:
            return settings.out
        student, teacher = job.start_from(settings.checkpoint, whole_rows=True), open_checkpoint(settings.teacher)
        _check_vocabularies(student, teacher, settings.top)
        if settings.shards is not None:
            trained = open_trained_with(settings.shards / "train", job.tokenizer.fingerprint, str(student.place))
        else:
            trained = load_conversations(settings.conversations, job.tokenizer, settings.batch.row_tokens)
        folder = job.run.path / "state" / "teacher"
        if not is_taught(folder):
            _ask(job, teacher, trained, folder, settings.top)
        taught = read_taught(folder, trained, settings.top)
        mixture, epochs = settings.mixture, settings.epochs
        job.finish(job.learn(distill, trained, epochs=epochs, mixture=mixture, columns=taught.columns))
    return settings.out


def _ask(job: Job, teacher: Checkpoint, sources: dict[str, Documents], folder: Path, top: int) -> None:
    job.run.need(disk_bytes=taught_bytes(sources, top))
    model, batch = teacher.load().to(job.device), job.settings.batch
    sizes = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens, **job.placement.rows}
    ask(model, sources, folder, k=top, **sizes)


def _check_vocabularies(student: Checkpoint, teacher: Checkpoint, top: int) -> None:
    sizes = student.config.vocab_size, teacher.config.vocab_size
    if sizes[0] != sizes[1] or student.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
        raise ConfigError(
            f"{teacher.place} (vocabulary of {sizes[1]:,}) and {student.place} ({sizes[0]:,}) have other vocabularies: "
            "a teacher's probabilities mean nothing under another; take a student made with the teacher's tokenizer"
        )
    if top > sizes[0]:
        raise ConfigError(f"top is {top:,}, and the vocabulary has {sizes[0]:,} tokens")
