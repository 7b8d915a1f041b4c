"""SFT: supervised fine-tuning on conversations; prompts are masked, answers and their stop tokens are learned."""

from __future__ import annotations

from dataclasses import field, replace
from functools import partial
from pathlib import Path

from herd.config import settings
from herd.data.conversations import Conversations, split_conversations
from herd.log import amount, say
from herd.tokenizer.chat import stops
from herd.train.job import Job, training
from herd.train.objectives import next_token
from herd.train.schedule import BatchSettings
from herd.train.settings import TuneSettings
from herd.train.validation import KeptAside


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
        "validation": settings.validation.files or None,
    }
    with training(settings, "sft", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint)
        sources, aside, left_out = _conversations(settings, job)
        count, kept = (sum(len(documents) for documents in part.values()) for part in (sources, aside))
        say(f"  {amount(count)} conversations" + f", {amount(kept)} kept aside" * bool(kept))
        objective = partial(next_token, sources=sorted({*sources, *aside}))
        figures = job.learn(
            objective,
            sources,
            epochs=settings.epochs,
            mixture=settings.mixture,
            max_steps=settings.max_steps,
            aside=KeptAside(aside) if aside else None,
        )
        figures |= {"left_out": dict(left_out)} if left_out else {}
        job.model.config = replace(job.config, eos_token_id=stops(job.tokenizer))  # it ends turns now: for chat
        job.finish({"conversations": count} | figures)
    return settings.out


def _conversations(settings: SftSettings, job: Job) -> Conversations:
    """What is learned, and what is kept aside, a share or files of its own."""
    options, validation = settings.rows, settings.validation
    longest = min(settings.batch.row_tokens, job.config.max_position_embeddings)
    found = split_conversations(settings.conversations, job.tokenizer, longest, validation.share, options)
    if not validation.files:
        return found
    own = replace(options, weights={})
    return found._replace(aside=split_conversations(validation.files, job.tokenizer, longest, 0.0, own).learned)
