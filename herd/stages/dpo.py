"""DPO: direct preference optimisation, formatting tokens masked, with an NLL term on the chosen responses."""

from __future__ import annotations

import io
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from herd.config import settings
from herd.data.loader import PackedLoader
from herd.data.preferences import Pairs, load_pairs
from herd.errors import CheckpointError
from herd.formats.checkpoint import open_checkpoint
from herd.log import amount, say
from herd.model.llama import LlamaForCausalLM
from herd.parallel.launch import agreed, joined, open_run_together
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.run import Run, atomic_write
from herd.train.checkpoint import is_first
from herd.train.metrics import last_means
from herd.train.objectives import dpo
from herd.train.optimizer import OptimizerSettings
from herd.train.placement import Placement, place, prepare
from herd.train.reference import log_probs
from herd.train.saving import SavingSettings, finish
from herd.train.schedule import BatchSettings, ScheduleSettings, phases, steps_for
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer


@settings
class DpoSettings:
    """Tune a fine-tuned model on preference pairs."""

    may_change: ClassVar[tuple[str, ...]] = ("recompute",)

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
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How the model and the rows are spread over the processes that `torchrun` starts."""
    recompute: int = 0
    """Every so-manieth layer forgets its activations and computes them again backwards: 1 all, 2 half, 0 none."""
    seed: int = 0
    """Seed of the order of the pairs."""

    def __post_init__(self):
        self.batch.check_whole_rows()
        if self.epochs <= 0 or self.beta <= 0 or self.nll < 0 or self.recompute < 0:
            raise ValueError("epochs and beta must be positive, nll and recompute 0 or more")


def run(settings: DpoSettings) -> Path:
    """Compute the reference's log-probabilities once, train, and write `checkpoint/`."""
    inputs = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    with (
        joined(settings.out) as device,
        open_run_together(settings.out, stage="dpo", settings=settings, inputs=inputs) as run,
    ):
        if run.finished:
            return run.path
        checkpoint, batch = open_checkpoint(settings.checkpoint), settings.batch
        tokenizer, config = checkpoint.tokenizer, checkpoint.learnable_config()
        placement = place(
            config, settings.parallel, settings.optimizer, device, row_tokens=batch.row_tokens, whole_rows=True
        )
        pairs = load_pairs(settings.pairs, tokenizer, batch.row_tokens, min_strength=settings.min_strength)
        epoch_tokens = _loader(pairs, settings, placement, 1).epoch_tokens()
        num_steps = steps_for(batch, settings.epochs * epoch_tokens)
        say(f"  {amount(len(pairs))} pairs, {num_steps} steps")
        run.need(disk_bytes=placement.disk_bytes)
        model = placement.load(checkpoint)
        pairs = pairs.with_reference(_reference(run, model, pairs, batch, placement))
        prepare(model, "auto", settings.recompute)
        trainer = Trainer(
            model,
            partial(dpo, beta=settings.beta, nll=settings.nll),
            run,
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            saving=settings.saving,
            stability=settings.stability,
            peak_flops=placement.peak_flops(model),
            label="dpo",
        )
        trainer.fit(_loader(pairs, settings, placement, num_steps), num_steps)
        finish(model, run, tokenizer, {"pairs": len(pairs), "steps": num_steps} | last_means(run.path))
    return run.path


def _reference(
    run: Run, model: LlamaForCausalLM | ParallelModel, pairs: Pairs, batch: BatchSettings, placement: Placement
) -> np.ndarray:
    """The data's own log-probabilities where every pair has them; else the starting model's, kept for a resumed run."""
    if not np.isnan(pairs.reference[pairs.is_extreme()]).any():
        say("  reference log-probabilities are those in the data")
        return pairs.reference
    file = run.path / "reference.npy"
    if agreed(file.exists):
        return _read_reference(file, len(pairs.documents))
    options = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens}
    found = log_probs(model, pairs, **options, **placement.rows)
    if is_first():
        buffer = io.BytesIO()
        np.save(buffer, found)
        atomic_write(file, buffer.getvalue())
    return found


def _read_reference(file: Path, num_responses: int) -> np.ndarray:
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):
        found = np.zeros(0)
    if found.shape != (num_responses,):
        raise CheckpointError(f"{file}: damaged; delete it, and the reference is computed once more")
    return found


def _loader(pairs: Pairs, settings: DpoSettings, placement: Placement, num_steps: int) -> PackedLoader:
    return PackedLoader(
        {"pairs": pairs.documents},
        phases(settings.batch, num_steps, {"pairs": 1.0}),
        seed=settings.seed,
        micro_tokens=settings.batch.micro_tokens,
        columns=pairs.dpo_columns,
        **placement.rows,
    )
