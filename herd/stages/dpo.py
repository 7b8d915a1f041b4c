"""DPO: direct preference optimisation, formatting tokens masked, with an NLL term on the chosen responses."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from herd.config import settings
from herd.data.preferences import Pairs, load_pairs
from herd.log import amount, say
from herd.parallel.launch import agreed
from herd.run import atomic_write
from herd.train.checkpoint import is_first
from herd.train.job import Job, training
from herd.train.objectives import dpo
from herd.train.reference import log_probs, read_log_probs
from herd.train.settings import TuneSettings


@settings
class DpoSettings(TuneSettings):
    """Tune a fine-tuned model on preference pairs."""

    pairs: list[Path]
    """JSONL, JSON, CSV or Parquet files (or folders of them) of preferences in any form that docs/tuning.md lists; an
    `edited` response replaces the chosen one."""
    checkpoint: Path
    """Checkpoint to start from, which is the reference too; its tokenizer beside it."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    nll: float = 0.2
    """Weight of the NLL per token of the chosen response."""
    min_strength: Literal["marginally_better", "slightly_better", "better", "significantly_better"] = "better"
    """Pairs whose responses are more alike than this are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0 or self.nll < 0:
            raise ValueError("beta must be positive, nll 0 or more")


def run(settings: DpoSettings) -> Path:
    """Compute the reference's log-probabilities once, train, and write `checkpoint/`."""
    inputs: dict[str, Path | list[Path] | None] = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    with training(settings, "dpo", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint, whole_rows=True)
        row_tokens = settings.batch.row_tokens
        pairs = load_pairs(settings.pairs, job.tokenizer, row_tokens, min_strength=settings.min_strength)
        say(f"  {amount(len(pairs))} pairs")
        pairs = pairs.with_reference(_reference(job, pairs))
        objective, sources = partial(dpo, beta=settings.beta, nll=settings.nll), {"pairs": pairs.documents}
        figures = job.learn(objective, sources, epochs=settings.epochs, columns=pairs.dpo_columns)
        job.finish({"pairs": len(pairs)} | figures)
    return settings.out


def _reference(job: Job, pairs: Pairs) -> np.ndarray:
    """The data's own log-probabilities where every pair has them; else the starting model's, kept for a resumed run."""
    if not np.isnan(pairs.reference[pairs.is_extreme()]).any():
        say("  reference log-probabilities are those in the data")
        return pairs.reference
    file = job.run.path / "reference.npy"
    if agreed(file.exists):
        return read_log_probs(file, len(pairs.documents))
    batch = job.settings.batch
    options = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens}
    found = log_probs(job.model, pairs, **options, **job.placement.rows)
    if is_first():
        buffer = io.BytesIO()
        np.save(buffer, found)
        atomic_write(file, buffer.getvalue())
    return found
