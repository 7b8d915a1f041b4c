"""SFT: supervised fine-tuning on conversations; prompts are masked, answers and their stop tokens are learned."""

from __future__ import annotations

from dataclasses import field, replace
from functools import partial
from pathlib import Path

from herd.config import settings
from herd.data.conversations import load_conversations
from herd.log import amount, say
from herd.tokenizer.chat import stops
from herd.train.job import training
from herd.train.objectives import next_token
from herd.train.schedule import BatchSettings
from herd.train.settings import TuneSettings


@settings
class SftSettings(TuneSettings):
    """Fine-tune a language model on conversations."""

    conversations: list[Path]
    """JSONL, JSON, CSV or Parquet files (or folders of them) of conversations in any form that docs/tuning.md lists."""
    epochs: float = 2.0
    """How often all conversations are gone through."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each `source` of the rows; by its tokens when empty."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=512))
    """Batch size and row length; a conversation must fit into a row."""


def run(settings: SftSettings) -> Path:
    """Train, and write `checkpoint/` with the tokenizer beside the weights."""
    inputs: dict[str, Path | list[Path] | None] = {
        "conversations": settings.conversations,
        "checkpoint": settings.checkpoint,
    }
    with training(settings, "sft", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint)
        sources = load_conversations(settings.conversations, job.tokenizer, settings.batch.row_tokens)
        count = sum(len(documents) for documents in sources.values())
        say(f"  {amount(count)} conversations")
        objective = partial(next_token, sources=sorted(sources))
        figures = job.learn(objective, sources, epochs=settings.epochs, mixture=settings.mixture)
        job.model.config = replace(job.config, eos_token_id=stops(job.tokenizer))  # it ends turns now: for chat
        job.finish({"conversations": count} | figures)
    return settings.out
