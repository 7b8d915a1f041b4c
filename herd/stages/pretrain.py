"""Pre-train a language model on token shards: from scratch, on a longer context, or to anneal it.

The three are one stage with other settings: a starting checkpoint, a row length, RoPE, a mixture, a quality threshold
and a learning-rate schedule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import ClassVar, Literal

import torch

from herd.config import settings, to_dict
from herd.data.loader import PackedLoader
from herd.data.shards import Documents, open_heldout, open_shards
from herd.errors import ConfigError
from herd.evals.perplexity import code_length_in_memory, sample_documents
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.vocabulary import open_tokenizer
from herd.infer.engine import Engine
from herd.log import amount, say
from herd.model.config import ModelConfig, num_parameters
from herd.model.init import fresh_weights, initialize
from herd.model.llama import LlamaForCausalLM, empty_model
from herd.model.sizes import hyperparameters, model_of_depth, model_of_size
from herd.ops.probe import best_dtype
from herd.parallel.launch import agreed, joined, open_run_together
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.run import Run, atomic_write, read_metrics, read_record
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import is_first
from herd.train.compile import Compile
from herd.train.hooks import at_shares, evenly
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.placement import place, prepare, read_all
from herd.train.saving import SavingSettings, assembled, finish, snapshots
from herd.train.schedule import BatchSettings, ScheduleSettings, phases, steps_for
from herd.train.stability import StabilitySettings, step_range
from herd.train.trackers import Tracker
from herd.train.trainer import Trainer
from herd.types import SamplingParams

_SAMPLE_SHARES = (0.25, 0.5, 1.0)
_DIALLED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
)
_SHAPE = {field.name for field in fields(ModelConfig)}
_CHOICES = "choices.json"


@settings
class ModelSettings:
    """The shape of a new model. What follows from the tokenizer and the rows is not asked for."""

    hidden_size: int = 256
    """Width D of the residual stream."""
    num_hidden_layers: int = 6
    """Number of transformer blocks."""
    num_attention_heads: int = 4
    """Query heads H."""
    num_key_value_heads: int = 2
    """Key-value heads K, a divisor of the query heads."""
    intermediate_size: int = 704
    """Width F of the feed-forward layer."""
    tie_word_embeddings: bool = True
    """The output projection is the embedding itself, as in the smallest Llamas."""
    rope_theta: float | None = None
    """Base of the rotary frequencies: 500,000 for a new model, a starting checkpoint's own when not given."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    embedding_range: float | None = None
    """Standard deviation of fresh embeddings; like the other weights when not given."""

    def __post_init__(self):
        if min(self.initializer_range, self.embedding_range or 0.0) < 0:
            raise ValueError("initializer_range and embedding_range must be 0 or more")


@settings
class RunSettings:
    """How the run goes, apart from what is learned."""

    may_change: ClassVar[tuple[str, ...]] = ("save_seconds", "compile", "recompute", "trackers", "hang_seconds")

    seed: int = 0
    """Seed of the fresh weights and of the order of the data."""
    dtype: Literal["auto", "bf16", "fp32", "fp8"] = "auto"
    """Number type of weights and activations (masters are fp32); auto takes the faster one as measured here; fp8: bf16
    with matmuls in float8 where a probe of their shape on this GPU says that it gains."""
    save_seconds: float = 8.0
    """Seconds between saves of the state that an interrupted run continues from."""
    snapshots: int = 0
    """Checkpoints kept evenly over the run, the last step included, for averaging."""
    compile: Compile = "auto"
    """What a C++ or Triton compiler may make faster; auto: attention on a CPU, whole blocks on a GPU."""
    recompute: int = 0
    """Every so-manieth layer forgets its activations and computes them again backwards: 1 all, 2 half, 0 none."""
    prompts: list[str] = field(default_factory=list)
    """Texts the model continues at 25, 50 and 100 % of the run."""
    snapshot_steps: int = 0
    """Steps between checkpoints kept, instead of or beside `snapshots`; 0: none."""
    keep_snapshots: int = 0
    """Newest checkpoints that stay, and the one with the best loss; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints after a multiple of so many steps stay too."""
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    """What is done about spikes of the loss or the gradient."""
    skip_steps: list[str] = field(default_factory=list)
    """Steps of the data's schedule to pass over, `120` or `120-139`, counted from 1."""
    trackers: list[Tracker] = field(default_factory=list)
    """Trackers that get the figures of metrics.jsonl: tensorboard, wandb, mlflow."""
    hang_seconds: float = 0.0
    """Seconds without any progress after which a process writes down its stacks and ends itself; 0: never."""

    def __post_init__(self):
        if self.save_seconds <= 0:
            raise ValueError("save_seconds must be positive")
        counts = ("snapshots", "snapshot_steps", "keep_snapshots", "keep_every", "recompute", "hang_seconds")
        if min(getattr(self, name) for name in counts) < 0:
            raise ValueError(f"{', '.join(counts)} must be 0 or more")
        for text in self.skip_steps:
            step_range(text)


@settings
class PretrainSettings:
    """Pre-train on packed documents."""

    shards: Path
    """Run folder of `herd pack`."""
    tokenizer: Path
    """Tokenizer the shards were packed with."""
    out: Path
    """Run folder to write."""
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
    batch: BatchSettings = field(default_factory=BatchSettings)
    """Batch size and row length."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each source; by its size when empty."""
    mixture_at: dict[float, dict[str, float]] = field(default_factory=dict)
    """Shares of the run's steps (0 to 1) at which the mixture becomes another: `{0.8: {web: 1, code: 3}}`."""
    min_quality: float = 0.0
    """Percentile (0 to 100) of a source's quality below which its documents are left out."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Learning rate over the run."""
    run: RunSettings = field(default_factory=RunSettings)
    """Seed, number type, saving and samples."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How the model and the rows are spread over the processes that `torchrun` starts."""

    def __post_init__(self):
        if self.tokens < self.batch.tokens:
            raise ValueError(
                f"tokens ({self.tokens:,.0f}) are less than one step's batch.tokens ({self.batch.tokens:,}): train on "
                "more, or make the batch smaller"
            )
        if not all(0 < share < 1 for share in self.mixture_at):
            raise ValueError("mixture_at names shares of the run: above 0 and below 1")
        if not 0 <= self.min_quality < 100:
            raise ValueError("min_quality is a percentile: at least 0 and less than 100")

    @staticmethod
    def derived(values: dict) -> dict:
        """What follows from `size` or `depth`: the shape, and the paper's laws for the rest (`herd.model.sizes`)."""
        size, depth = values.get("size"), values.get("depth")
        if size is None and depth is None:
            return {}
        if size is not None and depth is not None:
            raise ValueError("`size` and `depth` are one dial: give one of them")
        if values.get("checkpoint") is not None:
            raise ValueError("`size` and `depth` are for a new model; the one of `checkpoint` keeps its shape")
        shape = model_of_size(str(size)) if size is not None else model_of_depth(_whole(depth))
        found = hyperparameters(num_parameters(shape))
        row_tokens = 8192 if shape.hidden_size >= 2048 else 2048 if shape.hidden_size >= 768 else 512
        batch_tokens = max(found.batch_tokens, row_tokens)
        return {
            "model": {name: getattr(shape, name) for name in (*_DIALLED, "rope_theta")},
            "tokens": float(found.tokens),
            "batch": {"tokens": batch_tokens, "row_tokens": row_tokens, "micro_tokens": max(row_tokens, 4096)},
            "optimizer": {"learning_rate": found.learning_rate},
            "schedule": {"warmup_steps": found.warmup_steps},
        }


def _whole(depth: object) -> int:
    if not isinstance(depth, int) or isinstance(depth, bool):
        raise ValueError(f"depth: expected a number of layers, got {depth}")
    return depth


def run(settings: PretrainSettings) -> Path:
    """Train, and write `checkpoint/` with the tokenizer beside the weights."""
    inputs = {"shards": settings.shards, "tokenizer": settings.tokenizer, "checkpoint": settings.checkpoint}
    with (
        joined(settings.out) as device,
        open_run_together(settings.out, stage="pretrain", settings=settings, inputs=inputs) as run,
    ):
        if run.finished:
            return run.path
        tokenizer = open_tokenizer(settings.tokenizer)
        start = open_checkpoint(settings.checkpoint) if settings.checkpoint else None
        dtype = agreed(lambda: _dtype(run, settings.run.dtype, device.type))
        config = _config(settings, tokenizer, start)
        row_tokens = settings.batch.row_tokens
        placement = place(config, settings.parallel, settings.optimizer, device, row_tokens=row_tokens)
        weights = partial(_weights, settings, config, start)
        model = placement.model(lambda: _model(settings, config, start, dtype), weights, dtype)
        found = _sources(settings, tokenizer)
        sources = {name: docs.better_than(settings.min_quality) for name, docs in found.items()}
        mixture = settings.mixture or {name: float(docs.num_tokens.sum()) for name, docs in sources.items()}
        num_steps = steps_for(settings.batch, settings.tokens)
        schedule = phases(settings.batch, num_steps, mixture, settings.mixture_at)
        loader = PackedLoader(
            sources,
            schedule,
            seed=settings.run.seed,
            micro_tokens=settings.batch.micro_tokens,
            **placement.rows,
        )
        float8 = settings.batch.micro_tokens if settings.run.dtype == "fp8" else 0
        compiled = prepare(model, settings.run.compile, settings.run.recompute, float8)
        if is_first():  # not before: a run that was refused may be tried again with other settings
            atomic_write(run.path / _CHOICES, json.dumps({"dtype": str(dtype).removeprefix("torch.")}))
        _announce(model, loader, num_steps, compiled)
        run.need(disk_bytes=placement.disk_bytes)
        saving = SavingSettings(
            save_seconds=settings.run.save_seconds,
            snapshot_steps=settings.run.snapshot_steps,
            keep_snapshots=settings.run.keep_snapshots,
            keep_every=settings.run.keep_every,
            keep_best=True,
            trackers=settings.run.trackers,
            hang_seconds=settings.run.hang_seconds,
        )
        hooks = [at_shares(_SAMPLE_SHARES, _sampler(run, model, tokenizer, settings, num_steps, loader))]
        hooks += evenly(settings.run.snapshots, snapshots(model, run, saving))
        trainer = Trainer(
            model,
            next_token,
            run,
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            saving=saving,
            stability=settings.run.stability,
            skipped=settings.run.skip_steps,
            hooks=hooks,
            peak_flops=placement.peak_flops(model),
            label=settings.out.name,
        )
        trainer.fit(loader, num_steps)
        if not is_first():
            return run.path
        figures = _figures(run)
        model = assembled(model, run.path)
        if heldout := open_heldout(settings.shards):
            bits = bits_per_byte(model, heldout, settings.batch.row_tokens)
            say(f"  held-out bits per byte {bits:.3f}")
            figures["heldout_bits_per_byte"] = round(bits, 4)
        finish(model, run, tokenizer, figures)
    return run.path


def bits_per_byte(
    model: LlamaForCausalLM, heldout: Mapping[str, Documents], context_tokens: int, max_bytes: int = 150_000
) -> float:
    """Bits per byte on a fixed sample of the held-out documents of every source together."""
    model.eval()
    nats = num_bytes = 0.0
    for documents in heldout.values():
        chosen = sample_documents(documents, max_bytes)
        tokens = [documents.tokens(index) for index in chosen]
        length = code_length_in_memory(model, tokens, documents.num_bytes[chosen], context_tokens=context_tokens)
        nats, num_bytes = nats + length.nats.sum(), num_bytes + length.num_bytes.sum()
    return nats / math.log(2) / max(num_bytes, 1)


def _dtype(run: Run, wish: str, device: str) -> torch.dtype:
    """The number type, chosen once: an interrupted run keeps what it began with."""
    record = run.path / _CHOICES
    if record.exists():
        return getattr(torch, read_record(record)["dtype"])
    if wish == "auto":
        return best_dtype(device)
    return torch.float32 if wish == "fp32" else torch.bfloat16


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


def _model(
    settings: PretrainSettings, config: ModelConfig, start: Checkpoint | None, dtype: torch.dtype
) -> LlamaForCausalLM:
    if start is None:
        model = empty_model(config, device="cpu")
        initialize(model, settings.run.seed, embedding_range=settings.model.embedding_range)
        return model.to(dtype)
    model = start.load(dtype=dtype)
    model.config = model.model.config = config
    return model


def _weights(
    settings: PretrainSettings, config: ModelConfig, start: Checkpoint | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that training begins with, one at a time."""
    if start is not None:
        return read_all(start.weights)
    return fresh_weights(empty_model(config), settings.run.seed, embedding_range=settings.model.embedding_range)


def new_config(shape: ModelSettings, tokenizer: Tokenizer, row_tokens: int) -> ModelConfig:
    """The configuration of a new model: the wished shape, and what follows from the tokenizer and the rows."""
    return ModelConfig(
        **{name: value for name, value in to_dict(shape).items() if value is not None and name in _SHAPE},
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=row_tokens,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )


def _sources(settings: PretrainSettings, tokenizer: Tokenizer) -> dict[str, Documents]:
    """What there is to train on, with the ids of this tokenizer: those of another would be learned as nonsense.

    Shards of somebody else's making may name no tokenizer; those are believed.
    """
    sources = open_shards(settings.shards / "train")
    if {documents.tokenizer for documents in sources.values()} - {"", tokenizer.fingerprint}:
        raise ConfigError(
            f"{settings.shards}: packed with another tokenizer than {settings.tokenizer}; give the one that its "
            "inputs.json names, or pack the documents anew (herd pack)"
        )
    return sources


def _announce(model: LlamaForCausalLM | ParallelModel, loader: PackedLoader, num_steps: int, compiled: str) -> None:
    parameters = num_parameters(model.config)
    dtype = str(model.dtype if isinstance(model, ParallelModel) else next(model.parameters()).dtype)
    say(
        f"  {amount(parameters)} parameters in {dtype.removeprefix('torch.')}, {num_steps:,} steps, "
        f"{amount(loader.tokens_before(num_steps))} tokens from {', '.join(loader.names)}, compiled: {compiled}"
    )


def _sampler(
    run: Run,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    settings: PretrainSettings,
    num_steps: int,
    loader: PackedLoader,
) -> Callable[[int], None]:
    """A hook that lets the model continue the prompts and keeps what it wrote, once for each step."""
    file = run.path / "training_samples.jsonl"

    def write(step: int) -> None:
        if not settings.run.prompts or not is_first():
            return
        if isinstance(model, ParallelModel):
            say("  run.prompts are passed over: no process holds the whole model to continue them")
            return
        engine = Engine.of(model, tokenizer)
        params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=60, seed=settings.run.seed)
        texts = [completion.text for completion in engine.generate(list(settings.run.prompts), params)]
        samples = [{"prompt": prompt, "text": text} for prompt, text in zip(settings.run.prompts, texts)]
        row = {"step": step, "share": step / num_steps, "tokens": loader.tokens_before(step), "samples": samples}
        earlier = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [*(old for old in earlier if old["step"] < step), row]
        atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
        for sample in samples[:1]:
            say(f"\n  at {step / num_steps:.0%} it writes: {sample['prompt']}{sample['text']!r}")

    return write


def _figures(run: Run) -> dict[str, float]:
    """Headlines: what was trained on, the loss over the last twentieth of the run, the typical speed."""
    rows = read_metrics(run.path)
    tail = rows[-max(len(rows) // 20, 1) :]
    speeds = {name: median(row[name] for row in rows) for name in ("tokens_per_second", "mfu") if name in rows[0]}
    return {"tokens": rows[-1]["tokens"], "loss": round(fmean(row["loss"] for row in tail), 4)} | {
        name: float(f"{value:.4g}") for name, value in speeds.items()
    }
