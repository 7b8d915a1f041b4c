"""Pre-train a language model on token shards: from scratch, for a longer context, or for annealing.

All three are this stage with other settings: a starting checkpoint, a row length, RoPE, a mixture, a quality threshold
and a learning-rate schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.loader import PackedLoader
from herd.data.long import for_long_rows, origin
from herd.data.shards import Documents, content_hashes, open_heldout, open_trained_with
from herd.errors import ConfigError
from herd.evals.perplexity import heldout_lengths, together
from herd.evals.samples import sampler
from herd.evals.train_splits import check_no_train_split
from herd.evals.watching import WatchSettings, last_figures, watched_inputs, watcher
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.vocabulary import open_tokenizer
from herd.log import say
from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.model.shape import ModelSettings, dialled, new_config
from herd.run import atomic_write, read_metrics
from herd.scaling.mixing import recommended
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
    """Size of a new model (15M, 125M, 1B, 8B, ...): default shape, tokens, batch and learning rate follow from it."""
    depth: int | None = None
    """Like `size`, by number of layers instead of parameters."""
    checkpoint: Path | None = None
    """Checkpoint to start from; a new model when not given."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """Shape of a new model; of a starting checkpoint only `rope_theta` is changed."""
    tokens: float = 2e6
    """Tokens to train on."""
    flops: float | None = None
    """Training budget in FLOPs, attention included, instead of `tokens`."""
    max_epochs: float | None = None
    """Most epochs over a source; a run that needs more ends at once, with `left_out` in its figures."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each source; default: in proportion to their sizes."""
    mixture_at: dict[float, dict[str, float]] = field(default_factory=dict)
    """Shares of the run's steps (0 to 1) at which the mixture changes: `{0.8: {web: 1, code: 3}}`."""
    mixture_from: Path | None = None
    """Run folder of `herd scaling mix`, whose recommended weights are taken instead of `mixture`."""
    scaling: Path | None = None
    """Run folder of `herd scaling fit`, whose law gives a `size` its tokens, batch and rate instead of the paper's."""
    benchmarks: Path | None = None
    """Folder of benchmarks: annealing on a mix that contains rows of its `train...` files is refused."""
    probe: bool = False
    """Anneal only to measure the worth of a source: the mix may contain benchmarks' training rows."""
    long_share: float = 0.0
    """Share (0 to 1) of each source's weight given to documents that fill a whole row, for longer contexts."""
    copying_share: float = 0.0
    """Share (0 to 1) of the tokens in synthetic documents that repeat, at their end, text from far before."""
    min_quality: float = 0.0
    """Percentile (0 to 100) of a source's quality below which its documents are left out."""
    prompts: list[str] = field(default_factory=list)
    """Texts the model continues at 25, 50 and 100 % of the run."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """Evaluations during training."""
    saving: SavingSettings = field(default_factory=lambda: SavingSettings(keep_best=True))
    """What is kept while it runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flops is not None and self.flops <= 0:
            raise ValueError("flops must be above 0")
        if self.max_epochs is not None and self.max_epochs <= 0:
            raise ValueError("max_epochs must be above 0")
        if self.flops is None and self.tokens < self.batch.tokens:
            raise ValueError(
                f"tokens ({self.tokens:,.0f}) are less than one step's batch.tokens ({self.batch.tokens:,}): train on "
                "more, or make the batch smaller"
            )
        if self.mixture_from is not None and (self.mixture or self.mixture_at):
            raise ValueError("give mixture_from, or mixture and mixture_at")
        if not (0 <= self.long_share <= 1 and 0 <= self.copying_share < 1):
            raise ValueError("long_share must be from 0 to 1, copying_share at least 0 and below 1")
        if (self.long_share or self.copying_share) and self.mixture_at:
            raise ValueError("long_share and copying_share change the mixture: give them or mixture_at")
        if not all(0 < share < 1 for share in self.mixture_at):
            raise ValueError("mixture_at names shares of the run: above 0 and below 1")
        if not 0 <= self.min_quality < 100:
            raise ValueError("min_quality is a percentile: at least 0 and less than 100")
        if self.dtype == "stored" and self.checkpoint is None:
            raise ValueError("dtype `stored` is that of a checkpoint; a new model has auto, bf16, fp32 or fp8")

    @staticmethod
    def derived(values: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that follow from `size` or `depth`."""
        return dialled(values)


def run(settings: PretrainSettings) -> Path:
    """Train, and write `checkpoint/` with the tokenizer beside the weights."""
    inputs = {"shards": settings.shards, "tokenizer": settings.tokenizer, "checkpoint": settings.checkpoint}
    inputs |= {"mixture_from": settings.mixture_from, "scaling": settings.scaling, "benchmarks": settings.benchmarks}
    inputs |= watched_inputs(settings.watch)
    with training(settings, "pretrain", inputs) as job:
        if job.finished:
            return settings.out
        job.label = settings.out.name
        tokenizer = open_tokenizer(settings.tokenizer)
        start = open_checkpoint(settings.checkpoint) if settings.checkpoint else None
        config = _config(settings, tokenizer, start)
        seed, wide = settings.seed, settings.model.embedding_range
        job.start(  # it sets `job.placement`, so `begin` is looked up later
            config,
            tokenizer,
            lambda: job.placement.begin(start, job.dtype, seed=seed, embedding_range=wide),
        )
        documents_of = open_trained_with(settings.shards / "train", tokenizer.fingerprint, str(settings.tokenizer))
        sources = {name: documents.better_than(settings.min_quality) for name, documents in documents_of.items()}
        mixture = _mixture(settings, tokenizer)
        if start is not None and settings.schedule.anneals and not settings.probe:
            mixed = dict.fromkeys(
                [*(mixture or sources), *(n for one in settings.mixture_at.values() for n in one)], 1.0
            )
            check_no_train_split(sources, mixed, settings.benchmarks, tokenizer)
        tokens = _tokens(settings, config)
        if settings.long_share or settings.copying_share:
            shares = {"long_share": settings.long_share, "copying_share": settings.copying_share}
            row_tokens, seed = settings.batch.row_tokens, settings.seed
            sources, mixture = for_long_rows(sources, mixture, row_tokens, **shares, tokens=tokens, seed=seed)
        num_steps = steps_for(settings.batch, tokens)
        loader = job.loader(sources, num_steps, mixture=mixture, mixture_at=settings.mixture_at)
        if too_often := _too_often(settings, loader.epochs(num_steps)):
            say(f"  left out: {too_often}")
            if is_first():
                job.run.finish({"parameters": num_parameters(config), "left_out": too_often})
            return settings.out
        samples = sampler(
            job.run, job.model, tokenizer, settings.prompts, num_steps=num_steps, loader=loader, seed=settings.seed
        )
        watch = watcher(job.run, job.model, tokenizer, settings.watch, tokens_before=loader.tokens_before)
        job.train(next_token, loader, num_steps, hooks=[at_shares(_SAMPLE_SHARES, samples), *watch])
        if is_first():
            _finish(job, settings, sources, loader)
    return settings.out


def _mixture(settings: PretrainSettings, tokenizer: Tokenizer) -> Mapping[str, float]:
    """The given mixture, or the one recommended for these sources."""
    if settings.mixture_from is None:
        return settings.mixture
    return recommended(settings.mixture_from, content_hashes(settings.shards), tokenizer.fingerprint)


def _tokens(settings: PretrainSettings, config: ModelConfig) -> float:
    """The given tokens, or those that a budget of FLOPs allows.

    Raises:
        ConfigError: the budget is less than one step.
    """
    if settings.flops is None:
        return settings.tokens
    tokens = settings.flops / flops_per_token(config, settings.batch.row_tokens)
    if tokens < settings.batch.tokens:
        raise ConfigError(
            f"flops={settings.flops:g} allows {tokens:,.0f} tokens of this model, less than one step's batch.tokens "
            f"({settings.batch.tokens:,}): give more FLOPs, a smaller model or a smaller batch"
        )
    return tokens


def _too_often(settings: PretrainSettings, epochs: Mapping[str, float]) -> str:
    """Why a run repeats its data too often; empty if it does not."""
    name, most = max(epochs.items(), key=lambda one: one[1])
    if settings.max_epochs is None or most <= settings.max_epochs:
        return ""
    return f"it would go through `{name}` {most:.1f} times, and max_epochs is {settings.max_epochs:g}"


def _config(settings: PretrainSettings, tokenizer: Tokenizer, start: Checkpoint | None) -> ModelConfig:
    """The shape of the model: the given one, or the starting checkpoint's with another RoPE and context."""
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


def _finish(job: Job, settings: PretrainSettings, sources: Mapping[str, Documents], loader: PackedLoader) -> None:
    """Record the run's headline figures, with held-out bits per byte, and `sources.json`: its data by content hash."""
    steps = read_metrics(job.run.path)[-1]["step"]
    spent = loader.tokens_by_length(steps).items()
    figures = headlines(job.run.path) | {
        "parameters": num_parameters(job.config),
        "flops": float(f"{sum(tokens * flops_per_token(job.config, length) for length, tokens in spent):.6g}"),
    }
    job.put_together()
    record: dict[str, Any] = {"tokenizer": job.tokenizer.fingerprint, "row_tokens": settings.batch.row_tokens}
    hashes, epochs, weights = content_hashes(settings.shards), loader.epochs(steps), loader.phases[-1].mixture
    record["sources"] = {
        name: {
            "sha256": hashes.get(origin(name), f"made here, seed {settings.seed}"),
            "tokens": int(documents.num_tokens.sum()),
            "share": round(weights.get(name, 0.0) / sum(weights.values()), 6),
            "epochs": round(epochs.get(name, 0.0), 4),
        }
        for name, documents in sources.items()
    }
    if heldout := open_heldout(settings.shards):
        lengths = heldout_lengths(job.model, heldout, settings.batch.row_tokens)
        figures["heldout_bits_per_byte"] = round(together(lengths.values()), 4)
        say(f"  held-out bits per byte {figures['heldout_bits_per_byte']:.3f}")
        bits = {name: round(length.bits_per_byte, 5) for name, length in lengths.items()}
        record["heldout"] = {"sha256": content_hashes(settings.shards, "heldout"), "bits_per_byte": bits}
    atomic_write(job.run.path / "sources.json", json.dumps(record, indent=1))
    job.finish(figures | last_figures(job.run.path))
