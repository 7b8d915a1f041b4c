"""Reward model: the pre-trained (or fine-tuned) layers with a score head, trained to put better responses higher."""

from __future__ import annotations

from dataclasses import field
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import torch

from herd.config import settings
from herd.data.loader import PackedLoader
from herd.data.preferences import Pairs, load_pairs
from herd.formats.checkpoint import open_checkpoint
from herd.log import amount, say
from herd.model.llama import LlamaForSequenceClassification
from herd.model.reward import reward_config
from herd.parallel.launch import from_all, joined, open_run_together
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.metrics import last_means
from herd.train.objectives import reward_margins, reward_pairs
from herd.train.optimizer import OptimizerSettings
from herd.train.placement import Placement, place, prepare
from herd.train.saving import SavingSettings, finish
from herd.train.schedule import BatchSettings, ScheduleSettings, phases, steps_for
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer


@settings
class RewardSettings:
    """Train a reward model on preference pairs."""

    may_change: ClassVar[tuple[str, ...]] = ("recompute",)

    pairs: list[Path]
    """JSONL or Parquet files (or folders of them) of `prompt`, `chosen`, `rejected` and perhaps `edited`."""
    checkpoint: Path
    """Language model to start from, its tokenizer beside it."""
    out: Path
    """Run folder to write."""
    epochs: float = 1.0
    """How often all pairs are gone through."""
    holdout: float = 0.1
    """Share (0 to 1) of the prompts kept aside to measure accuracy on."""
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
    """Seed of the score head and of the order of the pairs."""

    def __post_init__(self):
        self.batch.check_whole_rows()
        if self.epochs <= 0 or self.recompute < 0 or not 0 <= self.holdout < 1:
            raise ValueError("epochs must be positive, recompute 0 or more, holdout a share: 0 or more, less than 1")


def run(settings: RewardSettings) -> Path:
    """Train, measure accuracy on the held-out pairs by kind, and write `checkpoint/`."""
    inputs = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    with (
        joined(settings.out) as device,
        open_run_together(settings.out, stage="reward", settings=settings, inputs=inputs) as run,
    ):
        if run.finished:
            return run.path
        checkpoint, batch = open_checkpoint(settings.checkpoint), settings.batch
        tokenizer, config = checkpoint.tokenizer, reward_config(checkpoint.learnable_config())
        placement = place(
            config, settings.parallel, settings.optimizer, device, row_tokens=batch.row_tokens, whole_rows=True
        )
        pairs = load_pairs(settings.pairs, tokenizer, batch.row_tokens, min_strength=settings.min_strength)
        trained, held_out = pairs.split(settings.holdout)
        epoch_tokens = _loader(trained, settings, placement, 1).epoch_tokens()
        num_steps = steps_for(batch, settings.epochs * epoch_tokens)
        say(f"  {amount(len(trained))} pairs to train on, {amount(len(held_out))} held out, {num_steps} steps")
        run.need(disk_bytes=placement.disk_bytes)
        model = placement.load(checkpoint, score_seed=settings.seed)
        prepare(model, "auto", settings.recompute)
        trainer = Trainer(
            model,
            reward_pairs,
            run,
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            saving=settings.saving,
            stability=settings.stability,
            peak_flops=placement.peak_flops(model),
            label="reward",
        )
        trainer.fit(_loader(trained, settings, placement, num_steps), num_steps)
        figures = {"pairs": len(trained), "heldout_pairs": len(held_out)} | last_means(run.path)
        if len(held_out):
            figures |= accuracy(model, held_out, _loader(held_out, settings, placement, 1))
            say(f"  held-out accuracy {figures['heldout_accuracy']:.1%}")
        finish(model, run, tokenizer, figures)
    return run.path


@torch.no_grad()
def accuracy(
    model: LlamaForSequenceClassification | ParallelModel, pairs: Pairs, loader: PackedLoader
) -> dict[str, float]:
    """How often the better response of a held-out comparison scores higher, over all and for each kind of pair."""
    model.eval()
    device, won = next(model.parameters()).device, []
    for batch in loader.epoch():
        better = (model.run(reward_margins, batch.to(device)) > 0).tolist()
        won += zip(better, batch.columns["document"].tolist())
    right: dict[str, list[bool]] = {}
    for better, document in chain.from_iterable(from_all(won)):
        for name in ("heldout_accuracy", f"heldout_accuracy/{pairs.kind[document]}"):
            right.setdefault(name, []).append(better)
    return {name: sum(values) / len(values) for name, values in right.items() if not name.endswith("/")}


def _loader(pairs: Pairs, settings: RewardSettings, placement: Placement, num_steps: int) -> PackedLoader:
    return PackedLoader(
        {"pairs": pairs.documents},
        phases(settings.batch, num_steps, {"pairs": 1.0}),
        seed=settings.seed,
        micro_tokens=settings.batch.micro_tokens,
        columns=pairs.reward_columns,
        **placement.rows,
    )
