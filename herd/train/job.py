"""From a model, rows and an objective to a finished run folder: what all training stages share.

with training(settings, "sft", {"conversations": settings.conversations}) as job:
    if not job.finished:
        job.start_from(settings.checkpoint)
        sources = load_conversations(settings.conversations, job.tokenizer, settings.batch.row_tokens)
        job.learn(next_token, sources, epochs=settings.epochs)
        job.finish()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from herd.data.loader import Columns, PackedLoader, num_rows
from herd.data.shards import Documents
from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.log import amount, say
from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig, num_parameters
from herd.model.llama import Llama, Objective
from herd.model.reward import reward_config
from herd.ops.probe import best_dtype
from herd.parallel.launch import agreed, joined, open_run_together
from herd.parallel.model import ParallelModel
from herd.run import Run, atomic_write, read_record
from herd.tokenizer.chat import in_format
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import is_first
from herd.train.hooks import Hook, evenly
from herd.train.metrics import last_means
from herd.train.placement import Placement, place, prepare
from herd.train.saving import assembled, finish, snapshots
from herd.train.schedule import phases, steps_for
from herd.train.settings import TrainSettings
from herd.train.sources import BatchSource
from herd.train.trainer import Trainer
from herd.train.validation import KeptAside, Validation, ValidationSettings, history

_CHOICES = "choices.json"
_FEW_STEPS = 20  # a run of fewer steps gets a warning


def training(
    settings: TrainSettings, stage: str, inputs: Mapping[str, Path | list[Path] | None]
) -> AbstractContextManager[Job]:
    """The run of a stage, on all processes that `torchrun` has started; `inputs` as in `herd.run.open_run`.

    Raises:
        UserError: as `open_run`.
    """
    return training_as(settings, settings, stage, inputs)


@contextmanager
def training_as(
    asked: Any, settings: TrainSettings, stage: str, inputs: Mapping[str, Path | list[Path] | None]
) -> Iterator[Job]:
    """As `training`, where the stage's own settings (`asked`, recorded in the run folder) differ from `settings`."""
    with (
        joined(settings.out) as device,
        open_run_together(settings.out, stage=stage, settings=asked, inputs=dict(inputs)) as run,
    ):
        yield Job(settings, run, device, stage)


class Job:
    """A training run: `start_from` a checkpoint (or `start` anew), `learn` or `train`, `finish`."""

    placement: Placement
    tokenizer: Tokenizer
    config: ModelConfig

    def __init__(self, settings: TrainSettings, run: Run, device: torch.device, label: str):
        self.settings, self.run, self.device, self.label = settings, run, device, label
        self._make: Callable[[], Llama | ParallelModel]

    @property
    def finished(self) -> bool:
        """Whether the run was already complete."""
        return self.run.finished

    def start_from(self, path: Path, *, scores: bool = False, whole_rows: bool = False) -> Checkpoint:
        """Start from a checkpoint; with `scores` a fresh score head replaces its output head.

        `whole_rows`: the objective needs whole rows, which some kinds of parallelism split.

        Raises:
            UserError: it cannot be trained, or not with these settings on this number of processes.
        """
        checkpoint = open_checkpoint(path)
        config = checkpoint.learnable_config()
        if config.architecture == SEQUENCE_CLASSIFICATION and not scores:
            raise CheckpointError(
                f"{path} is a reward model, but this stage trains a language model; give the checkpoint that it was "
                "trained from, or another language model"
            )
        tokenizer, template = checkpoint.tokenizer, getattr(self.settings, "template", None)
        tokenizer = tokenizer if template is None else in_format(tokenizer, template)
        self.start(reward_config(config) if scores else config, tokenizer, whole_rows=whole_rows)
        self._make = lambda: self.placement.load(checkpoint, dtype=self.dtype, score_seed=self.settings.seed)
        return checkpoint

    def start(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        make: Callable[[], Llama | ParallelModel] | None = None,
        *,
        whole_rows: bool = False,
    ) -> None:
        """Decide how a model of this shape is placed on the processes; `make` returns it when it is first needed."""
        chosen, row_tokens = self.settings, self.settings.batch.row_tokens
        self.config, self.tokenizer = config, tokenizer
        self.placement = place(
            config, chosen.parallel, chosen.optimizer, self.device, row_tokens=row_tokens, whole_rows=whole_rows
        )
        if make is not None:
            self._make = make

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the weights, None for the stored one; an interrupted run keeps the one it started with."""
        return agreed(self._dtype)

    @cached_property
    def model(self) -> Llama | ParallelModel:
        """The model in training, or this process's part of it."""
        self.run.need(disk_bytes=self.placement.disk_bytes)
        return self._make()

    def steps(self, sources: Mapping[str, Documents], epochs: float) -> int:
        """How many steps `epochs` passes over all rows take."""
        return steps_for(self.settings.batch, epochs * self.loader(sources, 1).epoch_tokens())

    def loader(
        self,
        sources: Mapping[str, Documents],
        num_steps: int,
        *,
        mixture: Mapping[str, float] | None = None,
        mixture_at: Mapping[float, Mapping[str, float]] | None = None,
        columns: Columns | None = None,
    ) -> PackedLoader:
        """This process's rows for `num_steps` steps; without a `mixture` an epoch has every row once."""
        batch = self.settings.batch
        weights = mixture or {name: float(count) for name, count in num_rows(sources, batch.row_tokens).items()}
        return PackedLoader(
            sources,
            phases(batch, num_steps, weights, mixture_at),
            seed=self.settings.seed,
            micro_tokens=batch.micro_tokens,
            columns=columns,
            **self.placement.rows,
        )

    def learn(
        self,
        objective: Objective,
        sources: Mapping[str, Documents],
        *,
        epochs: float,
        mixture: Mapping[str, float] | None = None,
        columns: Columns | None = None,
        max_steps: int | None = None,
        aside: KeptAside | None = None,
        watch: Callable[[BatchSource], Sequence[Hook]] = lambda source: (),
    ) -> dict[str, Any]:
        """Train for `epochs` passes over all rows, or until validation on `aside` ends it; returns the final figures.

        The loss of the held-out rows (`aside`) is measured as `settings.validation` says; `watch` makes further hooks.
        """
        num_steps = self.steps(sources, epochs)
        self._warn_of_few_steps(num_steps, epochs)
        num_steps = min(num_steps, max_steps or num_steps)
        loader = self.loader(sources, num_steps, mixture=mixture, columns=columns)
        hooks = [*watch(loader)]
        if aside is not None:
            validation = self._validation(objective, aside)
            hooks.append(Hook(validation, validation.due))
        steps = self.train(objective, loader, num_steps, hooks=hooks)
        figures = {"steps": steps} | last_means(self.run.path)
        if aside is None:
            return figures
        if (best := validation.take_best()) is not None and best < steps:
            say(f"  the final weights are those after step {best:,}, which has the lowest validation loss")
        lowest = agreed(lambda: min(history(self.run.path), key=lambda row: row["loss"]))
        return figures | {"validation_loss": lowest["loss"], "validation_step": lowest["step"]}

    def _validation(self, objective: Objective, aside: KeptAside) -> Validation:
        options = getattr(self.settings, "validation", ValidationSettings())
        parallel = self.settings.parallel
        if parallel.of_one_copy > parallel.shard:
            raise ConfigError(
                "validation needs whole rows, which parallel.tensor, context and pipeline split; use replicas and shard"
            )
        if isinstance(self.model, ParallelModel) and options.keep == "best":
            raise ConfigError(
                "validation.keep=best needs a whole copy on each process (replicas alone); set validation.keep=last"
            )
        batches = self.loader(aside.sources, 1, columns=aside.columns).epoch()
        return Validation(self.model, objective, batches, self.run.path, options)

    def _warn_of_few_steps(self, num_steps: int, epochs: float) -> None:
        """Warn if the data give too few steps to learn much, and say which settings give more."""
        if num_steps >= _FEW_STEPS:
            return
        batch = self.settings.batch
        more = [f"epochs={-(-_FEW_STEPS * epochs // num_steps):.0f}"]
        rows = max(1, batch.tokens * num_steps // _FEW_STEPS // batch.row_tokens)
        if (smaller := rows * batch.row_tokens) < batch.tokens:
            more.insert(0, f"batch.tokens={smaller} (fewer rows per step; now {batch.tokens})")
        steps = f"{num_steps} step{'s' * (num_steps > 1)}"
        say(f"  the data give only {steps}, too few to learn much; set {' or '.join(more)} for more")

    def train(
        self,
        objective: Objective,
        source: BatchSource,
        num_steps: int,
        *,
        hooks: Sequence[Hook] = (),
    ) -> int:
        """Train the model on a source of batches; returns the number of steps, fewer if a hook ended it."""
        chosen, model = self.settings, self.model
        float8 = chosen.batch.micro_tokens if chosen.dtype == "fp8" else 0
        compiled = prepare(model, chosen.compile, chosen.recompute, float8)
        dtype = model.dtype if isinstance(model, ParallelModel) else next(model.parameters()).dtype
        size, tokens = amount(num_parameters(self.config)), amount(source.tokens_before(num_steps))
        say(
            f"  {size} parameters in {str(dtype).removeprefix('torch.')}, {num_steps:,} steps, {tokens} tokens from "
            f"{', '.join(source.names)}, compiled: {compiled}"
        )
        if is_first() and self.dtype:  # only now: a run that was refused may be tried again with other settings
            atomic_write(self.run.path / _CHOICES, json.dumps({"dtype": str(self.dtype).removeprefix("torch.")}))
        kept = evenly(chosen.saving.snapshots, snapshots(model, self.run, chosen.saving, self.tokenizer))
        trainer = Trainer(
            model,
            objective,
            self.run,
            optimizer=chosen.optimizer,
            schedule=chosen.schedule,
            saving=chosen.saving,
            stability=chosen.stability,
            skipped=chosen.skip_steps,
            hooks=[*hooks, *kept],
            peak_flops=self.placement.peak_flops(model),
            label=self.label,
            tokenizer=self.tokenizer,
        )
        trainer.fit(source, num_steps)
        return trainer.num_steps

    def put_together(self) -> None:
        """Replace `model` by the whole model, assembled from all processes; on the first process, after training."""
        self.model = assembled(self.model, self.run.path)

    def finish(self, figures: dict[str, Any] | None = None) -> None:
        """Write `checkpoint/` with weights and tokenizer, and mark the run complete."""
        finish(self.model, self.run, self.tokenizer, figures)

    def _dtype(self) -> torch.dtype | None:
        record, wish = self.run.path / _CHOICES, self.settings.dtype
        if record.exists():
            dtype: torch.dtype = getattr(torch, read_record(record)["dtype"])
            return dtype
        if wish == "stored":
            return torch.bfloat16 if self.settings.optimizer.state == "bf16" else None
        if wish == "auto":
            return best_dtype(self.device.type)
        return torch.float32 if wish == "fp32" else torch.bfloat16
