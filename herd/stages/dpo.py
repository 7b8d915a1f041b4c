"""DPO: direct preference optimisation, formatting tokens masked, with an NLL term on the chosen responses."""

from __future__ import annotations

import io
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from herd.config import settings
from herd.data.preferences import Pairs, load_pairs
from herd.errors import DataError
from herd.evals.watching import WatchSettings, watched_by, watched_inputs
from herd.log import amount, say
from herd.parallel.launch import agreed
from herd.post.watch import Watch
from herd.run import atomic_write
from herd.train.checkpoint import is_first
from herd.train.job import Job, training
from herd.train.objectives import dpo
from herd.train.reference import log_probs, read_log_probs
from herd.train.settings import TuneSettings
from herd.train.validation import KeptAside


@settings
class DpoSettings(TuneSettings):
    """Tune a fine-tuned model on preference pairs."""

    pairs: list[Path]
    """JSONL, JSON, CSV or Parquet files (or folders of them) of preferences in any form that docs/tuning.md lists; an
    `edited` response replaces the chosen one."""
    checkpoint: Path
    """Checkpoint to start from, also the reference model; with its tokenizer."""
    beta: float = 0.1
    """Strength of the constraint to the reference model."""
    nll: float = 0.2
    """Weight of the NLL per token of the chosen response."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """Loss of a pair's margin: sigmoid (DPO) or ipo, which has a finite optimum (beta is then often 0.1 to 1)."""
    count_terminators: bool = False
    """Whether the token that ends a response counts, as in TRL; the paper masks it with the other formatting tokens."""
    min_strength: Literal["marginally_better", "slightly_better", "better", "significantly_better"] = "better"
    """Pairs with a weaker preference than this are left out."""
    watched: int = 16
    """Prompts answered before and after training, for a warning if lengths or refusals drift; 0: none."""
    watched_tokens: int = 128
    """Longest such answer, in tokens."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """Evaluations during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.watched < 0 or self.watched_tokens < 1:
            raise ValueError("watched must be 0 or more, watched_tokens at least 1")
        if self.beta <= 0 or self.nll < 0:
            raise ValueError("beta must be positive, nll 0 or more")


def run(settings: DpoSettings) -> Path:
    """Compute the reference's log-probabilities once, train, and write `checkpoint/`."""
    inputs: dict[str, Path | list[Path] | None] = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    inputs["validation"] = settings.validation.files or None
    inputs |= watched_inputs(settings.watch)
    with training(settings, "dpo", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint, whole_rows=True)
        pairs, aside = _pairs(settings, job)
        say(f"  {amount(len(pairs))} pairs" + (f", {amount(len(aside))} kept aside" if aside else ""))
        objective = partial(dpo, beta=settings.beta, nll=settings.nll, loss=settings.loss)
        watch = Watch(job, pairs, prompts=settings.watched, max_tokens=settings.watched_tokens)
        watch.begin()
        figures = job.learn(
            objective,
            {"pairs": pairs.documents},
            epochs=settings.epochs,
            columns=pairs.dpo_columns,
            max_steps=settings.max_steps,
            aside=KeptAside({"pairs": aside.documents}, aside.dpo_columns) if aside else None,
            watch=watched_by(job, settings.watch),
        )
        job.finish({"pairs": len(pairs)} | figures | watch.end(figures, settings.beta))
    return settings.out


def _pairs(settings: DpoSettings, job: Job) -> tuple[Pairs, Pairs | None]:
    """Training and validation pairs, each with the reference's log-probabilities."""
    row_tokens, validation = settings.batch.row_tokens, settings.validation
    context = job.config.max_position_embeddings
    load = partial(
        load_pairs, tokenizer=job.tokenizer, row_tokens=row_tokens, min_strength=settings.min_strength, context=context
    )
    pairs = load(settings.pairs, options=settings.rows)
    parts: list[Pairs] = [*pairs.split(validation.share, "validation")] if validation.share else [pairs]
    if validation.files:
        parts.append(load(validation.files, options=replace(settings.rows, weights={})))
    if not all(map(len, parts)):
        raise DataError(f"validation.share={validation.share} leaves one part of {len(pairs)} pairs empty; change it")
    names = ("reference.npy", "reference-validation.npy")
    parts = [part.with_terminators() if settings.count_terminators else part for part in parts]
    with_reference = [part.with_reference(_reference(job, part, name)) for part, name in zip(parts, names)]
    return with_reference[0], with_reference[1] if validation else None


def _reference(job: Job, pairs: Pairs, name: str) -> np.ndarray:
    """The log-probabilities in the data if every pair has them; else the starting model's, kept for a resumed run."""
    if not np.isnan(pairs.reference[pairs.is_extreme()]).any():
        say("  reference log-probabilities are those in the data")
        return pairs.reference
    file = job.run.path / name
    if agreed(file.exists):
        return read_log_probs(file, len(pairs.documents))
    batch = job.settings.batch
    options = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens}
    reference = log_probs(job.model, pairs, **options, **job.placement.rows)
    if is_first():
        buffer = io.BytesIO()
        np.save(buffer, reference)
        atomic_write(file, buffer.getvalue())
    return reference
