"""SFT: supervised fine-tuning on conversations, with loss on the answers and their stop tokens only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from functools import partial
from pathlib import Path

from herd.config import settings
from herd.data.conversations import Conversations, split_conversations
from herd.data.shards import Documents, open_trained_with
from herd.evals.watching import WatchSettings, watched_by, watched_inputs
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
    """Passes over the conversations."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each `source` of the rows; default: in proportion to their tokens."""
    text: Path | None = None
    """Run folder of `herd pack`: its training documents are mixed in, against forgetting."""
    text_share: float = 0.2
    """Share (0 to 1) of each step's tokens taken from that text; the conversations' epochs stay the same."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """Evaluations during training."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=512))
    """Batch size and row length; a conversation must fit into a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.text_share < 1:
            raise ValueError("text_share must lie between 0 and 1")


def run(settings: SftSettings) -> Path:
    """Train, and write `checkpoint/` with the tokenizer beside the weights."""
    inputs: dict[str, Path | list[Path] | None] = {
        "conversations": settings.conversations,
        "checkpoint": settings.checkpoint,
        "validation": settings.validation.files or None,
        "text": settings.text,
    }
    inputs |= watched_inputs(settings.watch)
    with training(settings, "sft", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint)
        sources, aside, left_out = _conversations(settings, job)
        count, kept = (sum(len(documents) for documents in part.values()) for part in (sources, aside))
        say(f"  {amount(count)} conversations" + f", {amount(kept)} kept aside" * bool(kept))
        epochs, mixture = settings.epochs, settings.mixture
        if settings.text is not None:
            sources, epochs, mixture = _with_text(settings, job, sources)
        objective = partial(next_token, sources=sorted({*sources, *aside}))
        job.model.config = replace(job.config, eos_token_id=stops(job.tokenizer))  # it ends turns now: for chat
        figures = job.learn(
            objective,
            sources,
            epochs=epochs,
            mixture=mixture,
            max_steps=settings.max_steps,
            aside=KeptAside(aside) if aside else None,
            watch=watched_by(job, settings.watch),
        )
        figures |= {"left_out": dict(left_out)} if left_out else {}
        job.finish({"conversations": count} | figures)
    return settings.out


def _conversations(settings: SftSettings, job: Job) -> Conversations:
    """Training and validation conversations; validation is a share of the data or files of its own."""
    options, validation = settings.rows, settings.validation
    longest = min(settings.batch.row_tokens, job.config.max_position_embeddings)
    parts = split_conversations(settings.conversations, job.tokenizer, longest, validation.share, options)
    if not validation.files:
        return parts
    own = replace(options, weights={})
    return parts._replace(aside=split_conversations(validation.files, job.tokenizer, longest, 0.0, own).learned)


def _with_text(
    settings: SftSettings, job: Job, conversations: Mapping[str, Documents]
) -> tuple[dict[str, Documents], float, dict[str, float]]:
    """Conversations together with general text, the epochs over both, and the weights, such that the conversations'
    own epochs stay the same."""
    assert settings.text is not None
    fingerprint, place = job.tokenizer.fingerprint, str(settings.checkpoint)
    packed = open_trained_with(settings.text / "train", fingerprint, place)
    texts = {f"text {name}": documents for name, documents in packed.items()}
    mixture = settings.mixture or _sizes(conversations)
    weights = {name: (1 - settings.text_share) * weight / sum(mixture.values()) for name, weight in mixture.items()}
    sizes = _sizes(texts)
    weights |= {name: settings.text_share * size / sum(sizes.values()) for name, size in sizes.items()}
    say(f"  {settings.text_share:.0%} of every step is text of {settings.text}")
    tokens = [job.loader(part, 1).epoch_tokens() for part in (conversations, {**conversations, **texts})]
    return {**conversations, **texts}, settings.epochs * tokens[0] / (1 - settings.text_share) / tokens[1], weights


def _sizes(sources: Mapping[str, Documents]) -> dict[str, float]:
    return {name: float(documents.num_tokens.sum()) for name, documents in sources.items()}
