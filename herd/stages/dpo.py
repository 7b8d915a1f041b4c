"""DPO: direct preference optimisation, formatting tokens masked, with an NLL term on the chosen responses."""

from __future__ import annotations

import io
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from herd.config import settings
from herd.data.loader import PackedLoader
from herd.data.preferences import Pairs, load_pairs
from herd.log import amount, say
from herd.model.checkpoint import find_checkpoint, load
from herd.model.llama import LlamaForCausalLM
from herd.run import Run, atomic_write, open_run
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.compile import compile_model
from herd.train.metrics import last_means
from herd.train.objectives import dpo
from herd.train.optimizer import OptimizerSettings
from herd.train.reference import log_probs
from herd.train.schedule import BatchSettings, ScheduleSettings, phases
from herd.train.stability import StabilitySettings
from herd.train.trainer import SavingSettings, finish, train


@settings
class DpoSettings:
    """Tune a fine-tuned model on preference pairs."""

    pairs: list[Path]
    """JSONL or Parquet files (or folders of them) of `prompt`, `chosen`, `rejected`; an `edited` response replaces
    the chosen one."""
    checkpoint: Path
    """Checkpoint to start from, which is the reference too; its tokenizer beside it."""
    out: Path
    """Run folder to write."""
    epochs: float = 1.0
    """How often all pairs are gone through."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    nll: float = 0.2
    """Weight of the NLL per token of the chosen response."""
    min_strength: Literal["marginally_better", "slightly_better", "better", "significantly_better"] = "better"
    """Pairs whose responses are more alike than this are left out."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=1024))
    """Batch size and row length; a pair must fit into a row."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-5))
    """AdamW."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Learning rate over the run."""
    saving: SavingSettings = field(default_factory=SavingSettings)
    """What is kept while it runs."""
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    """What is done about spikes of the loss or the gradient."""
    seed: int = 0
    """Seed of the order of the pairs."""

    def __post_init__(self):
        if self.epochs <= 0 or self.beta <= 0 or self.nll < 0:
            raise ValueError("epochs and beta must be positive, nll 0 or more")


def run(settings: DpoSettings) -> Path:
    """Compute the reference's log-probabilities once, train, and write `checkpoint/`."""
    inputs = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    with open_run(settings.out, stage="dpo", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        checkpoint, batch = find_checkpoint(settings.checkpoint), settings.batch
        tokenizer, model = Tokenizer.load(checkpoint), load(checkpoint)
        pairs = load_pairs(settings.pairs, tokenizer, batch.row_tokens, min_strength=settings.min_strength)
        pairs = pairs.with_reference(_reference(run, model, pairs, batch))
        compile_model(model, "auto")
        num_steps = _loader(pairs, settings, 1).steps_for_epochs(settings.epochs)
        say(f"  {amount(len(pairs))} pairs, {num_steps} steps")
        run.need(disk_bytes=36 * sum(parameter.numel() for parameter in model.parameters()))
        train(
            model,
            partial(dpo, beta=settings.beta, nll=settings.nll),
            _loader(pairs, settings, num_steps),
            run,
            num_steps=num_steps,
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            saving=settings.saving,
            stability=settings.stability,
            label="dpo",
        )
        finish(model, run, tokenizer, {"pairs": len(pairs), "steps": num_steps} | last_means(run.path))
    return run.path


def _reference(run: Run, model: LlamaForCausalLM, pairs: Pairs, batch: BatchSettings) -> np.ndarray:
    """The data's own log-probabilities where every pair has them; else the starting model's, kept for a resumed run."""
    if not np.isnan(pairs.reference[pairs.is_extreme()]).any():
        say("  reference log-probabilities are those in the data")
        return pairs.reference
    file = run.path / "reference.npy"
    if not file.exists():
        found = log_probs(model, pairs, row_tokens=batch.row_tokens, micro_tokens=batch.micro_tokens)
        buffer = io.BytesIO()
        np.save(buffer, found)
        atomic_write(file, buffer.getvalue())
    return np.load(file)


def _loader(pairs: Pairs, settings: DpoSettings, num_steps: int) -> PackedLoader:
    return PackedLoader(
        {"pairs": pairs.documents},
        phases(settings.batch, num_steps, {"pairs": 1.0}),
        seed=settings.seed,
        micro_tokens=settings.batch.micro_tokens,
        columns=pairs.dpo_columns,
    )
