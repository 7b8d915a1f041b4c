"""The trainer, for every objective.

    forward and backward over the micro-batches of a step, one division by the count summed over all of them and all
    processes, gradient clipping, optimizer, learning rate schedule

`Trainer.step` takes one step on given batches; `fit` takes many from a source of batches, with logging, saving and
recovery. The state is saved at intervals, so that a run killed at any moment continues exactly: the same batches (a
source gives the same for the same step), the same losses to the last bit. It is not subclassed; extensions are
functions called at intervals (`Hook`), after the state is saved.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist

from herd.data.loader import within_vocabulary
from herd.errors import CheckpointError, ConfigError, DataError
from herd.log import progress, say
from herd.model.flops import batch_flops
from herd.model.llama import Llama, Objective
from herd.parallel.launch import agreed, asked_to_end, this_process
from herd.parallel.model import ParallelModel
from herd.run import Run, read_metrics
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import StateSaver, discard_after, is_first, is_whole, load_state
from herd.train.compile import keep_freed_memory
from herd.train.energy import Energy
from herd.train.hooks import Hook, every
from herd.train.lora import add_adapters, has_adapters
from herd.train.metrics import Speed, Totals
from herd.train.optimizer import FlatAdamW, OptimizerSettings
from herd.train.saving import SavingSettings, snapshots
from herd.train.schedule import ScheduleSettings, learning_rate
from herd.train.sharded import ShardedAdamW
from herd.train.sources import BatchSource, drop_passed
from herd.train.stability import Monitor, Skips, StabilitySettings, culprit
from herd.train.trackers import Trackers
from herd.train.watch import COLLECTIVE, Watchdog
from herd.types import Batch

_REHEARSAL = 2  # steps after which a new run's state is saved and loaded once, as a test


class Outlier(ConfigError):
    """A step that was not taken: its loss or gradient norm is NaN, infinite or an outlier."""

    def __init__(self, step: int, fault: str, batches: Sequence[Batch]):
        super().__init__(f"step {step + 1}: {fault}. The weights are as they were before this step")
        self.fault, self.batches = fault, batches


class Trainer:
    """A model in training, its optimizer, and the run folder whose `state/` it is saved to and restored from.

    `skipped` names steps of the data schedule that `fit` skips (`120-139`), beside those skipped by `stability`;
    `peak_flops` is the machine's measured matmul rate, for MFU; `tokenizer` is written into snapshots.

    Raises:
        ConfigError: the settings do not fit the model or each other.
    """

    def __init__(
        self,
        model: Llama | ParallelModel,
        objective: Objective,
        run: Run,
        *,
        optimizer: OptimizerSettings | None = None,
        schedule: ScheduleSettings | None = None,
        saving: SavingSettings | None = None,
        stability: StabilitySettings | None = None,
        skipped: Sequence[str] = (),
        hooks: Sequence[Hook] = (),
        peak_flops: float = 0.0,
        label: str = "train",
        tokenizer: Tokenizer | None = None,
    ):
        optimizer = optimizer or OptimizerSettings()
        self.schedule, self.saving = schedule or ScheduleSettings(), saving or SavingSettings()
        self.stability = stability or StabilitySettings()
        if self.stability.deviations and self.saving.log_steps > 1:
            raise ConfigError("stability.deviations compares with every step before: set saving.log_steps to 1")
        if isinstance(model, ParallelModel):
            _check_made_for(model, optimizer)
        elif optimizer.lora.rank and not has_adapters(model):
            add_adapters(model, optimizer.lora)
        keep_freed_memory()
        self.model, self.objective, self.run = model, objective, run
        self.folder = run.path / "state"
        self.adamw: ShardedAdamW | FlatAdamW = (
            ShardedAdamW(model, optimizer) if isinstance(model, ParallelModel) else FlatAdamW(model, optimizer)
        )
        self.monitor, self.skips = Monitor(self.stability), Skips(run.path, skipped)
        self.hooks = [*hooks, every(self.saving.snapshot_steps, snapshots(model, run, self.saving, tokenizer))]
        self.peak_flops, self.label = peak_flops, label
        self.anchored = self.stability.rollback_steps if self.stability.action == "rollback" else 0
        self.saver = StateSaver(self.folder, self.anchored)
        self.now: Callable[[str], None] = lambda doing: None  # `fit` connects the watchdog and the signal handlers
        self.asked: Callable[[], bool] = lambda: False
        self.asked_to_end = False  # whether any process was asked to, as of the last step
        self.amid_update = False  # an interruption now would leave weights of two steps
        self.ended = False  # by a hook

    @property
    def num_steps(self) -> int:
        """Finished steps."""
        return self.adamw.num_steps

    def step(self, batches: Sequence[Batch], *, num_steps: int = 0, names: Sequence[str] = ()) -> dict[str, float]:
        """Take one step on these micro-batches; returns loss, the objective's metrics, learning rate, gradient norm.

        The learning rate is that of a run of `num_steps`; without it, the peak after the warm-up. `names` are those of
        the batches' sources, for messages.

        Raises:
            DataError: there is no label, or a token outside the model's vocabulary.
            Outlier: loss or gradient norm is not finite, or an outlier (`stability`); nothing was changed.
        """
        totals = self.gradients(batches, names)
        if not totals.count:
            raise DataError(
                f"step {self.num_steps + 1}: its batches have no labelled token or pair; check that the data is not "
                "all masked"
            )
        norm, loss = self.adamw.norm(totals.count), totals.means()["loss"]
        self.now("update")
        if fault := self.monitor.fault(loss, norm):
            self.adamw.drop_gradients()
            raise Outlier(self.num_steps, fault, batches)
        rate = self._rate(num_steps)
        self.saver.release()
        self.amid_update = True
        self.adamw.step(rate, totals.count, norm)
        self.amid_update = False
        self.monitor.accept(loss, norm)
        return totals.means() | {"learning_rate": rate, "gradient_norm": norm} | totals.ranks

    def gradients(self, batches: Sequence[Batch], names: Sequence[str] = ()) -> Totals:
        """Forward and backward over the micro-batches of a step; gradients and metrics are summed, not yet divided.

        Raises:
            DataError: a token is outside the model's vocabulary.
        """
        self.adamw.drop_gradients()
        if self.adamw.options.lora.dropout:  # dropout depends on the step, so that a resumed run repeats it
            torch.manual_seed(1_000_003 * this_process() + self.num_steps)
        readable, fault = within_vocabulary(batches, self.model.config.vocab_size, names)
        totals = Totals(data_fault=fault)
        self.now("forward and backward")
        if isinstance(self.model, ParallelModel):
            for loss in self.model.losses(self.objective, readable):
                totals.add(loss)
        else:
            assert isinstance(self.adamw, FlatAdamW)
            device = next(self.model.parameters()).device
            with self.adamw.collecting():
                for batch in readable:
                    loss = self.model.run(self.objective, batch.to(device))
                    loss.sum.backward()
                    totals.add(loss)
            totals.worked()
            self.now(COLLECTIVE + "sum of gradients")
            self.adamw.reduce()
            self.now(COLLECTIVE + "sum of figures")
        totals.asked_to_end = self.asked()
        totals.reduce()
        self.asked_to_end = totals.asked_to_end
        if totals.data_fault:
            raise DataError(f"step {self.num_steps + 1}: {totals.data_fault}")
        return totals

    def save(self, *, wait: bool = True) -> None:
        """Save the state after the steps taken so far; without `wait` it is written while training continues.

        Stored generated batches that no saved state needs any more are deleted.

        Raises:
            CapacityError: the disk is full, in this save or the previous one.
        """
        self.now(COLLECTIVE + "saving")
        self.saver.save(self.num_steps, self.adamw.state(), wait=wait)
        if is_first():
            drop_passed(self.folder, self.skips.place)

    def restore(self, step: int | None = None) -> bool:
        """Restore the newest complete state, or the one after `step` steps; false, and nothing done, if there is none.

        Raises:
            CheckpointError: there are states, but all are damaged, or it belongs to another model.
        """
        is_restored = self._load(step)
        if is_first():
            self.run.rewind(self.num_steps)
        self.monitor = Monitor(self.stability, agreed(lambda: read_metrics(self.run.path)))
        return is_restored

    def rehearse(self) -> None:
        """Load the state that was just saved, to detect early that a run could not be resumed.

        Raises:
            CheckpointError: not all processes see it.
        """
        if not self._load():
            raise CheckpointError(
                f"{self.folder}: the state of this run was saved, but not every process sees it; put the run folder on "
                "storage that all of them share"
            )

    def fit(self, source: BatchSource, num_steps: int) -> None:
        """Train to `num_steps` finished steps, continuing from the run folder's `state/` if it has one.

        Lines of metrics.jsonl count finished steps.

        Raises:
            DataError: as `step`.
            KeyboardInterrupt: any process was interrupted (SIGTERM, Ctrl-C); the state is saved.
            ConfigError: loss or gradient norm is not finite or an outlier, and `stability` says to stop.
            CapacityError, CheckpointError: as `save` and `restore`.
        """
        if not self.num_steps:
            self.restore()
        _Fit(self, source, num_steps).go()

    def pass_over(self, outlier: Outlier) -> None:
        """Skip the data of an outlier; with `rollback` also return to the last anchor state and skip all data since.

        Raises:
            ConfigError: the outlier ends the run; the message says where a NaN or infinity first appears.
            CheckpointError: the state to roll back to is missing.
        """
        self.saver.finish()
        step, fault = self.num_steps, outlier.fault
        if self.stability.action == "stop" or len(self.skips.found) >= self.stability.most:
            place = "" if "deviations" in fault else f"; {culprit(self.model, self.objective, outlier.batches)}"
            times = f" (outlier number {len(self.skips.found) + 1})" if self.skips.found else ""
            raise ConfigError(
                f"step {step + 1}: {fault}{place}{times}. The weights are as they were before this step; try a smaller "
                "learning rate or a longer warm-up, or let such steps be skipped (stability.action=skip or rollback)"
            ) from None
        back = step - step % self.anchored if self.anchored else step
        if back < step:  # delete later states first: a run killed here repeats the same step and outlier
            if not is_whole(self.folder, back):  # before anything is deleted
                raise CheckpointError(
                    f"{self.folder}: the state after step {back}, needed for the rollback, is missing or damaged; were "
                    "stability.action or rollback_steps changed? Later states are intact: use stability.action=skip"
                ) from None
            discard_after(self.folder, back)
        self.skips.add(self.skips.place(back), self.skips.place(step) + 1, f"step {step + 1}: {fault}", is_first())
        rolled_back = f", rolled back to step {back}" if back < step else ""
        say(f"\n  step {step + 1}: {fault}; its data are skipped{rolled_back}")
        if back < step:
            self.restore(back)

    def _load(self, step: int | None = None) -> bool:
        tensors = self.adamw.state()
        is_loaded = load_state(self.folder, tensors, step)
        if is_loaded:
            self.adamw.restored(tensors)
        return is_loaded

    def _rate(self, num_steps: int) -> float:
        length = num_steps or self.schedule.steps
        schedule = self.schedule if length else replace(self.schedule, shape="constant")
        return learning_rate(schedule, self.adamw.options.learning_rate, self.num_steps, length or sys.maxsize)


class _Fit:
    """The training loop up to `num_steps`: reading, logging, saving, hooks, interruptions and outliers."""

    def __init__(self, trainer: Trainer, source: BatchSource, num_steps: int):
        saving, path, step = trainer.saving, trainer.run.path, trainer.num_steps
        if trainer.schedule.warmup_steps > num_steps:
            say(
                f"  schedule.warmup_steps is {trainer.schedule.warmup_steps:,}, the run only {num_steps:,} steps: "
                "all of them warm up, and the learning rate never decays; a twentieth of the run is usual"
            )
        self.trainer, self.source, self.num_steps = trainer, source, num_steps
        self.speed = Speed(trainer.peak_flops)
        self.trackers, self.energy = Trackers(saving.trackers if is_first() else [], path, step), Energy()
        self.watchdog = Watchdog(path, saving.hang_seconds)
        self.fresh, self.saved_at = not step, time.monotonic()
        self.logged, self.amid_roll_back = step, False

    def go(self) -> None:
        trainer, num_steps = self.trainer, self.num_steps
        if trainer.anchored and not trainer.num_steps:
            trainer.save()
        trainer.model.train()
        for hook in trainer.hooks:  # a run killed between save and hooks has not called them: a snapshot may be missing
            if trainer.num_steps and hook.due(trainer.num_steps, num_steps):
                trainer.ended |= hook.run(trainer.model, trainer.num_steps)
        done, total = self._tokens(trainer.num_steps), self._tokens(num_steps)
        with progress(trainer.label, total=total, unit="tokens", done=done) as bar, asked_to_end() as trainer.asked:
            try:
                while trainer.num_steps < num_steps and not trainer.ended:
                    figures, seen = self._take()
                    if figures:
                        bar.advance(seen, loss=figures["loss"])
                        self._after()
                    else:
                        bar.done = self._tokens(trainer.num_steps)
                        bar.total = self._tokens(num_steps)  # steps may differ in size
            except KeyboardInterrupt:
                if self._is_settled() and not dist.is_initialized():
                    trainer.save()
                raise
            except RuntimeError:  # raised by a collective when another process is gone
                trainer.saver.abandon()
                raise
            finally:
                self.watchdog.close()
                self.trackers.close()
                trainer.saver.finish()
                trainer.now, trainer.asked = lambda doing: None, lambda: False

    def _take(self) -> tuple[dict[str, float], int]:
        """The figures of the next step and its number of tokens; no figures if its data were skipped."""
        trainer, source, step = self.trainer, self.source, self.trainer.num_steps
        trainer.now = partial(self.watchdog.now, step)
        self.speed.begin()
        trainer.now("reading")
        batches = source.batches(trainer.skips.place(step))
        try:
            figures = trainer.step(batches, num_steps=self.num_steps, names=source.names)
        except Outlier as outlier:
            self._pass_over(outlier)
            return {}, 0
        done = self._tokens(step + 1)
        seen = done - self._tokens(step)
        figures |= self.speed.figures(seen, self._flops(batches, seen))
        if self.energy and is_first():
            figures["joules"] = self.energy.joules()
        if (step + 1) % trainer.saving.log_steps == 0 and is_first():
            trainer.run.log(step=step + 1, tokens=done, **figures)
            self.trackers.log(step + 1, {"tokens": done} | figures)
        self.logged = step + 1
        return figures, seen

    def _flops(self, batches: Sequence[Batch], places: int) -> float:
        """FLOPs of all processes for a step of `places` tokens, extrapolated from this process's share."""
        config, frozen = self.trainer.model.config, bool(self.trainer.adamw.options.lora.rank)
        mine = sum(batch.tokens.numel() for batch in batches)
        return sum(batch_flops(config, batch, frozen=frozen) for batch in batches) * places / max(mine, 1)

    def _pass_over(self, outlier: Outlier) -> None:
        step, self.amid_roll_back = self.trainer.num_steps, True  # an interruption now would leave weights of two steps
        self.trainer.pass_over(outlier)
        if self.trainer.num_steps < step:
            self.trackers.rewind(self.trainer.num_steps)
        self.logged, self.amid_roll_back = self.trainer.num_steps, False

    def _after(self) -> None:
        """Save the state if it is time or hooks need it; then call the hooks."""
        trainer, step = self.trainer, self.trainer.num_steps
        due = [hook for hook in trainer.hooks if hook.due(step, self.num_steps)]
        now = due or trainer.asked_to_end or step == self.num_steps  # the state must be on disk before these
        anchor = trainer.anchored and step % trainer.anchored == 0
        rehearsal = self.fresh and step == _REHEARSAL < self.num_steps
        overdue = time.monotonic() - self.saved_at > max(trainer.saving.save_seconds, trainer.saver.rest_seconds)
        if _agreed(now or anchor or rehearsal or overdue or trainer.saver.failed):  # `save` raises its error
            trainer.save(wait=bool(now or rehearsal))
            self.saved_at = time.monotonic()
        if rehearsal:
            trainer.rehearse()
        if trainer.asked_to_end:
            raise KeyboardInterrupt
        for hook in due:
            trainer.now("a hook")
            trainer.ended |= hook.run(trainer.model, step)

    def _is_settled(self) -> bool:
        """Whether memory is consistent and may be saved: all of one step, which is logged in metrics.jsonl."""
        trainer = self.trainer
        return not (trainer.amid_update or self.amid_roll_back) and trainer.num_steps == self.logged

    def _tokens(self, step: int) -> int:
        """Tokens of the steps before `step`, without skipped ones."""
        place, before = self.trainer.skips.place(step), self.source.tokens_before
        left_out = sum(before(last) - before(first) for first, last in self.trainer.skips.passed_over(place))
        return before(place) - left_out


def tokens_per_second(model: Llama, objective: Objective, batches: Sequence[Batch], repeats: int = 2) -> float:
    """Training speed of this machine: the best of a few forward and backward passes; weights are not changed."""
    best = math.inf
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for batch in batches:
            model.run(objective, batch).sum.backward()
        best = min(best, time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return sum(batch.tokens.numel() for batch in batches) / best


def _check_made_for(model: ParallelModel, optimizer: OptimizerSettings) -> None:
    """Check that the optimizer fits the parameters that were made trainable and sharded (`Placement.model`).

    Raises:
        ConfigError: it does not.
    """
    if optimizer.state != "fp32" or bool(optimizer.lora.rank) != has_adapters(model):
        raise ConfigError("on a mesh optimizer.lora must be as when the model was sharded, and optimizer.state fp32")


def _agreed(wish: object) -> bool:
    """The first process's decision, on all processes."""
    if not dist.is_initialized():
        return bool(wish)
    flag = [bool(wish)]
    dist.broadcast_object_list(flag, 0)
    return flag[0]
