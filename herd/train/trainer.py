"""The training loop: one, for every objective.

    forward and backward over the micro-batches of a step, one division by the count summed over all of them and all
    processes, clip, optimizer, schedule

The state is saved every so many seconds, so that a run killed at any moment continues as if nothing had happened: the
same batches (the loader is a pure function of the step), the same losses to the last bit. Extras are plain functions
called at intervals (`Hook`); the state is saved before they run.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn

from herd.config import settings
from herd.data.loader import PackedLoader, within_vocabulary
from herd.errors import CheckpointError, ConfigError, DataError
from herd.formats.checkpoint import save
from herd.log import progress, say
from herd.model.flops import flops_per_token
from herd.model.llama import Objective
from herd.parallel.launch import agreed, asked_to_end
from herd.parallel.model import ParallelModel
from herd.run import Run, read_metrics
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import (
    StateSaver,
    discard_after,
    discard_state,
    is_first,
    is_whole,
    load_state,
    read_masters,
    steps_of,
)
from herd.train.compile import keep_freed_memory
from herd.train.energy import Energy
from herd.train.lora import add_adapters, has_adapters, save_adapters, save_merged
from herd.train.metrics import Speed, Totals
from herd.train.optimizer import FlatAdamW, OptimizerSettings
from herd.train.schedule import ScheduleSettings, learning_rate
from herd.train.sharded import ShardedAdamW
from herd.train.stability import Monitor, Skips, StabilitySettings, culprit
from herd.train.trackers import Tracker, Trackers
from herd.train.watch import COLLECTIVE, Watchdog
from herd.types import Batch

_REHEARSAL = 2  # steps after which a new run's state is saved and loaded once, to see that this works


@settings
class SavingSettings:
    """What is kept of a run while it goes."""

    may_change: ClassVar[tuple[str, ...]] = ("save_seconds", "trackers", "hang_seconds")

    save_seconds: float = 8.0
    """Seconds between saves of the state that an interrupted run continues from."""
    snapshot_steps: int = 0
    """Steps between checkpoints kept under `checkpoints/` (for averaging); 0 keeps none."""
    keep_snapshots: int = 0
    """Newest checkpoints that stay under `checkpoints/`; 0 keeps all."""
    keep_every: int = 0
    """Keep beside them the checkpoints after a multiple of so many steps; 0: none for that."""
    keep_best: bool = False
    """Keep beside them the checkpoint with the lowest training loss since the one before it."""
    log_steps: int = 1
    """Steps between lines of metrics.jsonl."""
    trackers: list[Tracker] = field(default_factory=list)
    """Trackers that get the same figures: tensorboard, wandb, mlflow (installed by you)."""
    hang_seconds: float = 0.0
    """Seconds without any progress after which a process writes down its stacks and ends itself; 0: never."""

    def __post_init__(self):
        if self.save_seconds <= 0 or self.log_steps < 1:
            raise ValueError("save_seconds and log_steps must be positive")
        if min(self.snapshot_steps, self.keep_snapshots, self.keep_every, self.hang_seconds) < 0:
            raise ValueError("snapshot_steps, keep_snapshots, keep_every and hang_seconds must be 0 or more")


@dataclass(frozen=True)
class Hook:
    """A function called with the number of finished steps, wherever `due(step, num_steps)` says so.

    A resumed run calls the hooks of the step it continues from once more; so `call` must not mind a second time.
    """

    call: Callable[[int], None]
    due: Callable[[int, int], bool]


def every(steps: int, call: Callable[[int], None]) -> Hook:
    """Call after every so many steps."""
    return Hook(call, lambda step, num_steps: steps > 0 and step % steps == 0)


def at_shares(shares: Sequence[float], call: Callable[[int], None]) -> Hook:
    """Call when these shares (0 to 1) of the run are done."""
    return Hook(call, lambda step, num_steps: step in {max(1, round(share * num_steps)) for share in shares})


def evenly(count: int, call: Callable[[int], None]) -> list[Hook]:
    """Call so many times over the run, at equal distances, the last step included."""
    return [at_shares([number / count for number in range(1, count + 1)], call)] if count else []


def snapshots(model: nn.Module, run: Run, saving: SavingSettings) -> Callable[[int], None]:
    """What keeps the model as `checkpoints/step-...`, and of older ones those that `saving` says."""
    return partial(_snapshot, model, run.path, saving)


def train(
    model: nn.Module,
    objective: Objective,
    loader: PackedLoader,
    run: Run,
    *,
    num_steps: int,
    optimizer: OptimizerSettings | None = None,
    schedule: ScheduleSettings | None = None,
    saving: SavingSettings | None = None,
    stability: StabilitySettings | None = None,
    skipped: Sequence[str] = (),
    hooks: Sequence[Hook] = (),
    peak_flops: float = 0.0,
    label: str = "train",
) -> None:
    """Train `model` in place to `num_steps` finished steps, continuing from the run folder's `state/` if it has one.

    `peak_flops` is the machine's measured arithmetic rate, for MFU. Lines of metrics.jsonl count finished steps.
    `skipped` names steps of the data's schedule to pass over (`120-139`), beside those that `stability` finds.

    Raises:
        DataError: a step whose batches have no label to learn from, or a token that the model has not.
        KeyboardInterrupt: the run was to end (SIGTERM, Ctrl-C), of several processes any; the state is saved.
        ConfigError: the loss or the gradient is no longer a number, or an outlier, and `stability` says to stop.
        CapacityError, CheckpointError: as `save_state` and `load_state`.
    """
    schedule, saving = schedule or ScheduleSettings(), saving or SavingSettings()
    optimizer = optimizer or OptimizerSettings()
    if isinstance(model, ParallelModel):
        _check_made_for(model, optimizer)
    elif optimizer.lora.rank and not has_adapters(model):
        add_adapters(model, optimizer.lora)
    if schedule.warmup_steps > num_steps:
        say(
            f"  schedule.warmup_steps is {schedule.warmup_steps:,} and the run has {num_steps:,} steps: all of them "
            "warm up, and the learning rate never falls; a twentieth of the run is usual"
        )
    keep_freed_memory()
    adamw = _resumed(model, optimizer, run)
    speed = Speed(flops_per_token(model.config, loader.phases[0].row_tokens), peak_flops)
    hooks = [*hooks, every(saving.snapshot_steps, snapshots(model, run, saving))]
    skips, stability = Skips(run.path, skipped), stability or StabilitySettings()
    monitor = _monitor(stability, saving, run)
    settled, saved_at, fresh = True, time.monotonic(), not adamw.num_steps
    anchored = stability.rollback_steps if stability.action == "rollback" else 0
    trackers = _trackers(saving, run.path, adamw.num_steps)
    saver, energy = StateSaver(run.path / "state", anchored), Energy()
    watchdog = Watchdog(run.path, saving.hang_seconds)
    if anchored and not adamw.num_steps:
        saver.save(0, adamw.state(), wait=True)
    model.train()
    for hook in hooks:  # a run killed between its save and its hooks owes them: a snapshot may be missing
        if adamw.num_steps and hook.due(adamw.num_steps, num_steps):
            _call(hook, model, adamw.num_steps)
    done, total = _tokens(loader, skips, adamw.num_steps), _tokens(loader, skips, num_steps)
    with progress(label, total=total, unit="tokens", done=done) as bar, asked_to_end() as asked:
        try:
            while (step := adamw.num_steps) < num_steps:
                speed.begin()
                watchdog.now(step, "reading")
                names, vocab_size = loader.names, model.config.vocab_size
                batches, data_fault = within_vocabulary(loader.batches(skips.place(step)), vocab_size, names)
                begun = Totals(data_fault=data_fault)
                totals = _accumulate(model, objective, batches, adamw, partial(watchdog.now, step), asked, begun)
                if totals.data_fault:
                    raise DataError(f"step {step + 1}: {totals.data_fault}")
                norm = _norm(adamw, totals, step)
                watchdog.now(step, "update")
                if fault := monitor.fault(totals.means()["loss"], norm):
                    adamw.drop_gradients()
                    saver.finish()
                    _check_may_go_on(stability, skips, fault, step, partial(culprit, model, objective, batches))
                    settled = False  # interrupted amid a roll-back, the weights are of two steps
                    _pass_over(adamw, run, skips, step - step % anchored if anchored else step, fault)
                    if adamw.num_steps < step:
                        trackers.rewind(adamw.num_steps)
                    monitor = _monitor(stability, saving, run)
                    settled = True
                    bar.done = done = _tokens(loader, skips, adamw.num_steps)
                    bar.total = _tokens(loader, skips, num_steps)  # later steps may hold more
                    continue
                rate = learning_rate(schedule, adamw.options.learning_rate, step, num_steps)
                settled = False  # an interruption between here and the log line leaves nothing fit to be saved
                adamw.step(rate, totals.count, norm)
                monitor.accept(totals.means()["loss"], norm)
                seen, done = _tokens(loader, skips, step + 1) - done, _tokens(loader, skips, step + 1)
                figures = totals.means() | {"learning_rate": rate, "gradient_norm": norm} | speed.figures(seen)
                figures |= totals.ranks
                if energy and is_first():
                    figures["joules"] = energy.joules()
                if (step + 1) % saving.log_steps == 0 and is_first():
                    run.log(step=step + 1, tokens=done, **figures)
                    trackers.log(step + 1, {"tokens": done} | figures)
                settled = True
                bar.advance(seen, loss=figures["loss"])
                due = [hook for hook in hooks if hook.due(step + 1, num_steps)]
                now = due or totals.asked_to_end or step + 1 == num_steps  # what comes next needs the state on disk
                anchor = anchored and (step + 1) % anchored == 0
                rehearsal = fresh and step + 1 == _REHEARSAL < num_steps
                overdue = time.monotonic() - saved_at > saving.save_seconds
                if _agreed(now or anchor or rehearsal or overdue or saver.failed):  # what failed is raised by the next
                    watchdog.now(step, COLLECTIVE + "saving")
                    saver.save(step + 1, adamw.state(), wait=bool(now or rehearsal))
                    saved_at = time.monotonic()
                if rehearsal:  # what cannot be resumed is to be known now, not after the first crash
                    _rehearse(adamw, run.path / "state")
                if totals.asked_to_end:
                    raise KeyboardInterrupt
                for hook in due:
                    watchdog.now(step, "a hook")
                    _call(hook, model, step + 1)
        except KeyboardInterrupt:
            if settled and not dist.is_initialized():
                saver.save(adamw.num_steps, adamw.state(), wait=True)
            raise
        except RuntimeError:  # so a process learns that another is gone
            saver.abandon()
            raise
        finally:
            watchdog.close()
            trackers.close()
            saver.finish()


def finish(model: nn.Module, run: Run, tokenizer: Tokenizer | None = None, figures: dict | None = None) -> None:
    """Write the trained model as `checkpoint/` (adapters merged, and apart as `adapter/`), complete the run's manifest,
    and only then let go of the state."""
    if not is_first():
        return
    whole = assembled(model, run.path)
    if has_adapters(whole):
        save_adapters(whole, run.path / "adapter")
    (save_merged if has_adapters(whole) else save)(whole, run.path / "checkpoint", tokenizer)
    run.finish(figures=figures)
    discard_state(run.path / "state")


def tokens_per_second(model: nn.Module, objective: Objective, batches: Sequence[Batch], repeats: int = 2) -> float:
    """How fast this machine trains: the best of a few passes forward and backward, without touching the weights."""
    best = math.inf
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for batch in batches:
            model.run(objective, batch).sum.backward()
        best = min(best, time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return sum(batch.tokens.numel() for batch in batches) / best


def assembled(model: nn.Module, folder: Path) -> nn.Module:
    """The whole of a model on a mesh, from the run folder's newest state and what was frozen, which is mapped from its
    files where they hold it as it is; a model that is whole, as it is."""
    whole = _learned(model, folder)
    if frozen := {name for name, parameter in whole.named_parameters() if parameter.is_meta}:
        _set(whole, {name: weight.to(model.dtype) for name, weight in model.base() if name in frozen})
    return whole


def _learned(model: nn.Module, folder: Path) -> nn.Module:
    """The whole of a model on a mesh, from the newest state, its frozen weights left out (on `meta`)."""
    if not isinstance(model, ParallelModel):
        return model
    whole = model.whole()
    learned = {name: parameter for name, parameter in whole.named_parameters() if parameter.requires_grad}
    found = {name: torch.empty_like(parameter, device="cpu") for name, parameter in learned.items()}
    read_masters(folder / "state", found)
    _set(whole, found)
    return whole.eval()


def _set(whole: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put tensors into a model as its parameters, without a copy."""
    whole.load_state_dict(weights, strict=False, assign=True)
    if hasattr(whole, "tie_weights"):
        whole.tie_weights()


def _check_made_for(model: ParallelModel, optimizer: OptimizerSettings) -> None:
    """What is learned was settled when the parts were made and sharded (`Placement.model`).

    Raises:
        ConfigError: the settings ask for something else.
    """
    if optimizer.state != "fp32" or bool(optimizer.lora.rank) != has_adapters(model):
        raise ConfigError(
            "on a mesh what the model was made for is learned, all weights or adapters, with float32 state"
        )


def _resumed(model: nn.Module, options: OptimizerSettings, run: Run) -> FlatAdamW | ShardedAdamW:
    adamw = (ShardedAdamW if isinstance(model, ParallelModel) else FlatAdamW)(model, options)
    _restore(adamw, run.path / "state")
    if is_first():
        run.rewind(adamw.num_steps)
    return adamw


def _restore(adamw: FlatAdamW | ShardedAdamW, folder: Path, step: int | None = None) -> bool:
    """Take up the newest state, or that after so many steps; false where there is none."""
    tensors = adamw.state()
    found = load_state(folder, tensors, step)
    if found:
        adamw.restored(tensors)
    return found


def _rehearse(adamw: FlatAdamW | ShardedAdamW, folder: Path) -> None:
    """Take up the state that was just saved.

    Raises:
        CheckpointError: not all processes see it.
    """
    if not _restore(adamw, folder):
        raise CheckpointError(
            f"{folder}: the state of this run was saved, but not every process sees it: the run folder must lie on "
            "storage that all of them share"
        )


def _accumulate(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    adamw: FlatAdamW | ShardedAdamW,
    now: Callable[[str], None] = lambda doing: None,
    asked: Callable[[], bool] = lambda: False,
    totals: Totals | None = None,
) -> Totals:
    """Forward and backward over the micro-batches of a step; gradients and figures are summed, not yet divided."""
    adamw.drop_gradients()
    totals = totals or Totals()
    now("forward and backward")
    if isinstance(model, ParallelModel):
        for loss in model.losses(objective, batches):
            totals.add(loss)
        totals.asked_to_end = asked()
        totals.reduce()
        return totals
    device = next(model.parameters()).device
    for batch in batches:
        loss = model.run(objective, batch.to(device))
        loss.sum.backward()
        adamw.collect()
        totals.add(loss)
    totals.worked()
    now(COLLECTIVE + "sum of gradients")
    adamw.reduce()
    now(COLLECTIVE + "sum of figures")
    totals.asked_to_end = asked()
    totals.reduce()
    return totals


def _norm(adamw: FlatAdamW | ShardedAdamW, totals: Totals, step: int) -> float:
    if not totals.count:
        raise DataError(
            f"step {step + 1}: its batches have no token or pair to learn from; check that the data is not all masked"
        )
    return adamw.norm(totals.count)


def _monitor(stability: StabilitySettings, saving: SavingSettings, run: Run) -> Monitor:
    """The monitor as it was after the steps in metrics.jsonl, the same on all processes.

    Raises:
        ConfigError: not every step is in there, so that a resumed run would compare with other steps.
    """
    if stability.deviations and saving.log_steps > 1:
        raise ConfigError("stability.deviations compares with every step before: set saving.log_steps to 1")
    return Monitor(stability, agreed(lambda: read_metrics(run.path)))


def _check_may_go_on(
    stability: StabilitySettings, skips: Skips, fault: str, step: int, find_culprit: Callable[[], str]
) -> None:
    """Raise where an outlier is to end the run; of a number that is none, say where it comes from."""
    if stability.action == "stop" or len(skips.found) >= stability.most:
        place = "" if "deviations" in fault else f"; {find_culprit()}"
        times = f" (outlier number {len(skips.found) + 1})" if skips.found else ""
        raise ConfigError(
            f"step {step + 1}: {fault}{place}{times}. The weights are as they were before this step; try a smaller "
            "learning rate or a longer warm-up, or let such steps be passed over (stability.action=skip or rollback)"
        )


def _pass_over(adamw: FlatAdamW | ShardedAdamW, run: Run, skips: Skips, back: int, fault: str) -> None:
    """Leave out the data from step `back` to the present one, and be at that step again.

    Later states go first: a run killed here comes to the same step once more, and finds the same.
    """
    step, state = adamw.num_steps, run.path / "state"
    if back < step:
        if not is_whole(state, back):  # asked before anything is thrown away
            raise CheckpointError(
                f"{state}: the state after step {back}, to which the run is to be rolled back, is missing or torn; "
                "were stability.action or rollback_steps changed? Use stability.action=skip: the later states are there"
            )
        discard_after(state, back)
    skips.add(skips.place(back), skips.place(step) + 1, f"step {step + 1}: {fault}", is_first())
    say(f"\n  step {step + 1}: {fault}; its data are passed over" + (f", back to step {back}" if back < step else ""))
    if back < step:
        _restore(adamw, state, back)
        if is_first():
            run.rewind(back)


def _tokens(loader: PackedLoader, skips: Skips, step: int) -> int:
    """Tokens learned from in the steps before one, what was passed over left out."""
    place = skips.place(step)
    left_out = sum(loader.tokens_before(last) - loader.tokens_before(first) for first, last in skips.passed_over(place))
    return loader.tokens_before(place) - left_out


def _snapshot(model: nn.Module, folder: Path, saving: SavingSettings, step: int) -> None:
    if not is_first():
        return
    whole = _learned(model, folder)
    (save_adapters if has_adapters(whole) else save)(whole, folder / "checkpoints" / f"step-{step:08d}")
    kept = sorted(path for path in (folder / "checkpoints").glob("step-*"))
    if saving.keep_snapshots:
        best = _best(kept, read_metrics(folder)) if saving.keep_best else None
        for old in kept[: -saving.keep_snapshots]:
            if old != best and not (saving.keep_every and steps_of(old) % saving.keep_every == 0):
                shutil.rmtree(old)


def _best(snapshots: Sequence[Path], rows: Sequence[dict]) -> Path:
    """The snapshot with the lowest mean loss over the steps since the one before (a tenth of the run at most)."""

    def loss(path: Path) -> float:
        last = steps_of(path)
        before = [row["loss"] for row in rows if row["step"] <= last]
        return fmean(before[-max(1, len(rows) // 10) :]) if before else math.inf  # log_steps may be the larger

    return min(snapshots, key=loss)


def _call(hook: Hook, model: nn.Module, step: int) -> None:
    model.eval()
    with torch.no_grad():
        hook.call(step)
    model.train()


def _trackers(saving: SavingSettings, folder: Path, step: int) -> Trackers:
    return Trackers(saving.trackers if is_first() else [], folder, step)


def _agreed(wish: object) -> bool:
    """What the first process wishes, known to all."""
    if not dist.is_initialized():
        return bool(wish)
    flag = [bool(wish)]
    dist.broadcast_object_list(flag, 0)
    return flag[0]
