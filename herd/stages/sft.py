"""SFT: supervised fine-tuning on conversations; prompts are masked, answers and their stop tokens are learned."""

from __future__ import annotations

from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.data.conversations import load_conversations
from herd.data.loader import PackedLoader
from herd.formats.checkpoint import open_checkpoint
from herd.log import amount, say
from herd.parallel.launch import joined, open_run_together
from herd.parallel.settings import ParallelSettings
from herd.train.metrics import last_means
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.placement import place, prepare
from herd.train.saving import SavingSettings, finish
from herd.train.schedule import BatchSettings, ScheduleSettings, phases, steps_for
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer


@settings
class SftSettings:
    """Fine-tune a language model on conversations."""

    may_change: ClassVar[tuple[str, ...]] = ("recompute",)

    conversations: list[Path]
    """JSONL or Parquet files (or folders of them) of `messages`; ShareGPT and prompt/answer rows are read too."""
    checkpoint: Path
    """Checkpoint to start from, its tokenizer beside it."""
    out: Path
    """Run folder to write."""
    epochs: float = 2.0
    """How often all conversations are gone through."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each `source` of the rows; by its tokens when empty."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=512))
    """Batch size and row length; a conversation must fit into a row."""
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
    """Seed of the order of the conversations."""

    def __post_init__(self):
        self.batch.check_whole_rows()
        if self.epochs <= 0 or self.recompute < 0:
            raise ValueError("epochs must be positive, recompute 0 or more")


def run(settings: SftSettings) -> Path:
    """Train, and write `checkpoint/` with the tokenizer beside the weights."""
    inputs = {"conversations": settings.conversations, "checkpoint": settings.checkpoint}
    with (
        joined(settings.out) as device,
        open_run_together(settings.out, stage="sft", settings=settings, inputs=inputs) as run,
    ):
        if run.finished:
            return run.path
        checkpoint, batch = open_checkpoint(settings.checkpoint), settings.batch
        tokenizer, config = checkpoint.tokenizer, checkpoint.learnable_config()
        placement = place(config, settings.parallel, settings.optimizer, device, row_tokens=batch.row_tokens)
        sources = load_conversations(settings.conversations, tokenizer, batch.row_tokens)
        mixture = settings.mixture or {name: float(docs.num_tokens.sum()) for name, docs in sources.items()}
        options = {"seed": settings.seed, "micro_tokens": batch.micro_tokens, **placement.rows}
        epoch_tokens = PackedLoader(sources, phases(batch, 1, mixture), **options).epoch_tokens()
        num_steps = steps_for(batch, settings.epochs * epoch_tokens)
        loader = PackedLoader(sources, phases(batch, num_steps, mixture), **options)
        num_conversations = sum(len(documents) for documents in sources.values())
        say(f"  {amount(num_conversations)} conversations, {num_steps} steps")
        run.need(disk_bytes=placement.disk_bytes)
        model = placement.load(checkpoint)
        prepare(model, "auto", settings.recompute)
        trainer = Trainer(
            model,
            partial(next_token, sources=loader.names),
            run,
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            saving=settings.saving,
            stability=settings.stability,
            peak_flops=placement.peak_flops(model),
            label="sft",
        )
        trainer.fit(loader, num_steps)
        model.config = replace(config, eos_token_id=tokenizer.stop_ids)  # it ends turns now: a model for chat
        finish(model, run, tokenizer, {"conversations": num_conversations, "steps": num_steps} | last_means(run.path))
    return run.path
