"""Pre-train a language model on token shards: from scratch, on a longer context, or to anneal it.

The three are one stage with other settings: a starting checkpoint, a row length, RoPE, a mixture, a quality threshold
and a learning-rate schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.shards import open_heldout, open_trained_with
from herd.errors import ConfigError
from herd.evals.perplexity import heldout_bits_per_byte
from herd.evals.samples import sampler
from herd.evals.watching import WatchSettings, watched_inputs, watcher
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.vocabulary import open_tokenizer
from herd.log import say
from herd.model.config import ModelConfig
from herd.model.shape import ModelSettings, dialled, new_config
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import is_first
from herd.train.hooks import at_shares
from herd.train.job import Job, training
from herd.train.metrics import headlines
from herd.train.objectives import next_token
from herd.train.saving import SavingSettings
from herd.train.schedule import steps_for
from herd.train.settings import TrainSettings

_SAMPLE_SHARES = (0.25, 0.5, 1.0)


@settings
class PretrainSettings(TrainSettings):
    """Pre-train on packed documents."""

    shards: Path
    """Run folder of `herd pack`."""
    tokenizer: Path
    """Tokenizer the shards were packed with."""
    size: str | None = None
    """Size of a new model (15M, 125M, 1B, 8B, ...): sets shape, tokens, batch and learning rate where they are not."""
    depth: int | None = None
    """The same dial by layers instead of parameters."""
    checkpoint: Path | None = None
    """Checkpoint to start from; a new model when not given."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """Shape of a new model; of a starting checkpoint only `rope_theta` is changed."""
    tokens: float = 2e6
    """Tokens to train on."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each source; by its size when empty."""
    mixture_at: dict[float, dict[str, float]] = field(default_factory=dict)
    """Shares of the run's steps (0 to 1) at which the mixture becomes another: `{0.8: {web: 1, code: 3}}`."""
    min_quality: float = 0.0
    """Percentile (0 to 100) of a source's quality below which its documents are left out."""
    prompts: list[str] = field(default_factory=list)
    """Texts the model continues at 25, 50 and 100 % of the run."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """What it is judged by while it learns."""
    saving: SavingSettings = field(default_factory=lambda: SavingSettings(keep_best=True))
    """What is kept while it runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < self.batch.tokens:
            raise ValueError(
                f"tokens ({self.tokens:,.0f}) are less than one step's batch.tokens ({self.batch.tokens:,}): train on "
                "more, or make the batch smaller"
            )
        if not all(0 < share < 1 for share in self.mixture_at):
            raise ValueError("mixture_at names shares of the run: above 0 and below 1")
        if not 0 <= self.min_quality < 100:
            raise ValueError("min_quality is a percentile: at least 0 and less than 100")
        if self.dtype == "stored" and self.checkpoint is None:
            raise ValueError("dtype `stored` is that of a checkpoint; a new model has auto, bf16, fp32 or fp8")

    @staticmethod
    def derived(values: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from `size` or `depth`."""
        return dialled(values)


def run(settings: PretrainSettings) -> Path:
    """Train, and write `checkpoint/` with the tokenizer beside the weights."""
    inputs = {"shards": settings.shards, "tokenizer": settings.tokenizer, "checkpoint": settings.checkpoint}
    inputs |= watched_inputs(settings.watch)
    with training(settings, "pretrain", inputs) as job:
        if job.finished:
            return settings.out
        job.label = settings.out.name
        tokenizer = open_tokenizer(settings.tokenizer)
        start = open_checkpoint(settings.checkpoint) if settings.checkpoint else None
        config = _config(settings, tokenizer, start)
        seed, wide = settings.seed, settings.model.embedding_range
        job.start(  # the placement is settled there: `begin` is looked up when the model is first needed
            config,
            tokenizer,
            lambda: job.placement.begin(start, job.dtype, seed=seed, embedding_range=wide),
        )
        found = open_trained_with(settings.shards / "train", tokenizer.fingerprint, str(settings.tokenizer))
        sources = {name: documents.better_than(settings.min_quality) for name, documents in found.items()}
        num_steps = steps_for(settings.batch, settings.tokens)
        loader = job.loader(sources, num_steps, mixture=settings.mixture, mixture_at=settings.mixture_at)
        samples = sampler(
            job.run, job.model, tokenizer, settings.prompts, num_steps=num_steps, loader=loader, seed=settings.seed
        )
        watch = watcher(job.run, job.model, tokenizer, settings.watch, tokens_before=loader.tokens_before)
        job.train(next_token, loader, num_steps, hooks=[at_shares(_SAMPLE_SHARES, samples), *watch])
        if is_first():
            _finish(job, settings)
    return settings.out


def _config(settings: PretrainSettings, tokenizer: Tokenizer, start: Checkpoint | None) -> ModelConfig:
    """The shape that is trained: the wished one, or the starting checkpoint's with another RoPE and context."""
    row_tokens = settings.batch.row_tokens
    if start is None:
        return new_config(settings.model, tokenizer, row_tokens)
    config = start.learnable_config()
    if config.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{settings.checkpoint} has {config.vocab_size} embedding rows and the tokenizer "
            f"{settings.tokenizer} has {tokenizer.vocab_size}; give the tokenizer the checkpoint was trained with"
        )
    theta = settings.model.rope_theta or config.rope_theta
    return replace(config, rope_theta=theta, max_position_embeddings=row_tokens)


def _finish(job: Job, settings: PretrainSettings) -> None:
    """The run's headlines, held-out bits per byte among them."""
    figures = headlines(job.run.path)
    job.put_together()
    if heldout := open_heldout(settings.shards):
        bits = heldout_bits_per_byte(job.model, heldout, settings.batch.row_tokens)
        say(f"  held-out bits per byte {bits:.3f}")
        figures["heldout_bits_per_byte"] = round(bits, 4)
    job.finish(figures)
