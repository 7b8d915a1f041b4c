"""What happens when a step goes wrong: outliers found, steps passed over, runs set back, and a name for the culprit.

A step whose loss or gradient norm stands far above those before it can do harm that lasts. `skip` passes its data over;
`rollback` also takes back the steps since the last of the states kept for that (a function of the step, not of the
clock, so that a run killed anywhere does the same), and passes over their data too; `stop` ends the run.
What is passed over is recorded in the run folder (`skips.json`) before it takes effect, so that a resumed run does the
same, and every other sample stays where the schedule has it.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from herd.config import settings
from herd.errors import DataError
from herd.model.llama import Llama, Objective
from herd.parallel.chunk import local_part
from herd.parallel.launch import from_all
from herd.parallel.model import ParallelModel
from herd.run import atomic_write, read_record
from herd.types import Batch, Loss

_LEAST_STEPS = 16  # before there are so many to compare with, nothing is an outlier
_TO_DEVIATION = 1.4826  # from the median absolute deviation of a normal distribution to its standard deviation


@settings
class StabilitySettings:
    """What counts as an outlier, and what is done about one."""

    may_change: ClassVar[tuple[str, ...]] = ("action", "most")  # a run that stopped may go on and skip

    deviations: float = 0.0
    """Standard deviations above the recent median at which a loss or gradient norm is an outlier; 0: only NaN is."""
    window_steps: int = 128
    """Steps that a new one is compared with."""
    action: Literal["stop", "skip", "rollback"] = "stop"
    """Stop the run; pass the step's data over; or go back some steps and pass over the data since."""
    rollback_steps: int = 100
    """Steps between the states that `rollback` goes back to: those after 0, 100, 200, ... steps, whenever it is."""
    most: int = 20
    """Outliers after which a run is stopped all the same."""

    def __post_init__(self) -> None:
        if self.rollback_steps < 1:
            raise ValueError("rollback_steps must be at least 1")
        if self.deviations < 0 or self.window_steps < _LEAST_STEPS or self.most < 0:
            raise ValueError(f"deviations and most must be 0 or more, window_steps at least {_LEAST_STEPS}")


class Monitor:
    """Compares each step's loss and gradient norm with those of the steps before."""

    def __init__(self, options: StabilitySettings, rows: Iterable[dict[str, Any]] = ()):
        self.options = options
        self._recent: deque[tuple[float, float]] = deque(maxlen=options.window_steps)
        for row in rows:
            self.accept(row["loss"], row["gradient_norm"])

    def accept(self, loss: float, norm: float) -> None:
        """A step was taken."""
        self._recent.append((loss, norm))

    def fault(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step, in words; None when it may be taken."""
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        if not self.options.deviations or len(self._recent) < _LEAST_STEPS:
            return None
        for name, value, before in zip(("loss", "gradient norm"), (loss, norm), zip(*self._recent)):
            middle = median(before)
            deviation = max(_TO_DEVIATION * median(abs(x - middle) for x in before), 1e-3 * abs(middle), 1e-12)
            if value > middle + self.options.deviations * deviation:
                return f"the {name} is {value:.4g}, {(value - middle) / deviation:.1f} deviations above {middle:.4g}"
        return None


class Skips:
    """Ranges of the data's steps that are passed over, on disk in the order they were found."""

    def __init__(self, folder: Path, given: Sequence[str] = ()):
        self._file = folder / "skips.json"
        self.found: list[dict[str, Any]] = read_record(self._file) if self._file.exists() else []
        self._given = [step_range(text) for text in given]

    def place(self, step: int) -> int:
        """Which step of the data's schedule the run's step `step` (from 0) learns from."""
        for first, last in self._merged():
            if step >= first:
                step += last - first
        return step

    def passed_over(self, place: int) -> list[tuple[int, int]]:
        """The ranges before a place of the data's schedule."""
        return [(first, last) for first, last in self._merged() if first < place]

    def add(self, first: int, last: int, reason: str, write: bool = True) -> None:
        """Pass over the data of steps first up to, not including, last."""
        self.found.append({"first": first, "last": last, "reason": reason})
        if write:
            atomic_write(self._file, json.dumps(self.found, indent=1))

    def _merged(self) -> list[tuple[int, int]]:
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self._given, *((skip["first"], skip["last"]) for skip in self.found)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return merged


def step_range(text: str) -> tuple[int, int]:
    """`120-139` or `120`, counted from 1 and inclusive as metrics.jsonl counts, to steps from 0, the end exclusive.

    Raises:
        DataError: it is neither.
    """
    try:
        numbers = [int(part) for part in text.split("-")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or numbers[0] < 1 or numbers[-1] < numbers[0]:
        raise DataError(f"{text!r} names no steps to skip; write `120` or `120-139`, counted from 1")
    return numbers[0] - 1, numbers[-1]


def culprit(model: Llama | ParallelModel, objective: Objective, batches: Sequence[Batch]) -> str:
    """Where a number that is none appears first: forwards in a layer's result, else backwards in a gradient.

    Of several processes all call it together, each with its own batches; those that see it there are named.
    """
    models: list[nn.Module] = [*model.parts] if isinstance(model, ParallelModel) else [model]
    model.zero_grad(set_to_none=True)
    with _watched(models) as found:
        try:
            if isinstance(model, ParallelModel):
                model.losses(objective, batches)
                _look_at_losses([loss for stage in model.stages for loss in cast(list[Loss], stage.losses)], found)
            else:
                device = next(model.parameters()).device
                _run(model, objective, [batch.to(device) for batch in batches], found)
            sightings = from_all(found or _bad_gradient(models))
        finally:
            model.zero_grad(set_to_none=True)
    return _told(sightings)


@dataclass(frozen=True, order=True)
class _Sighting:
    """A number that is none, ordered by where it came up: all results before all gradients, which go backwards."""

    backward: bool
    layer: float  # negative in a gradient, as is the next
    call: int  # of all modules of this process in the order they run, or of its parameters
    name: str = field(compare=False)


def _run(model: Llama, objective: Objective, batches: Sequence[Batch], found: list[_Sighting]) -> None:
    """Forward and backward, batch after batch, until something is found."""
    for batch in batches:
        loss = model.run(objective, batch)
        _look_at_losses([loss], found)
        if found:
            return
        loss.sum.backward()
        if _bad_gradient([model]):
            return


@contextmanager
def _watched(models: Sequence[nn.Module]) -> Iterator[list[_Sighting]]:
    """Note the first layer whose result holds a number that is none."""
    found: list[_Sighting] = []
    calls = itertools.count()

    def looks(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            call = next(calls)
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(_Sighting(False, _layer(name), call, f"the result of {name}"))

        return look

    modules = [(n, m) for model in models for n, m in model.named_modules() if _is_leaf(n, m) or _is_block(n)]
    # before the hooks of tensor parallelism, which add up what the processes have
    handles = [module.register_forward_hook(looks(name), prepend=True) for name, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _look_at_losses(losses: Sequence[Loss], found: list[_Sighting]) -> None:
    if not found and not all(bool(torch.isfinite(loss.sum)) for loss in losses):
        found.append(_Sighting(False, math.inf, sys.maxsize, "the result of the objective"))


def _bad_gradient(models: Sequence[nn.Module]) -> list[_Sighting]:
    """The gradient nearest to the loss that holds a number that is none, if there is one."""
    gradients = [(n, local_part(p.grad)) for model in models for n, p in model.named_parameters() if p.grad is not None]
    bad = [index for index, (_, gradient) in enumerate(gradients) if not bool(torch.isfinite(gradient).all())]
    if not bad:
        return []
    name = gradients[bad[-1]][0]
    return [_Sighting(True, -_layer(name), -bad[-1], f"the gradient of {name}")]


def _told(sightings: Sequence[Sequence[_Sighting]]) -> str:
    """The earliest of what each process has seen, and which processes have seen it."""
    if not (seen := [one for found in sightings for one in found]):
        return "computed again it does not appear: look for a fault of this machine"
    first = min(seen)
    ranks = [str(rank) for rank, found in enumerate(sightings) if [one.name for one in found] == [first.name]]
    where = f" on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" if len(sightings) > 1 else ""
    return f"it appears first in {first.name}{where}"


def _layer(name: str) -> float:
    """Where a module or parameter stands: the embedding first, then the layers, then norm and head."""
    if name.startswith("model.embed_tokens"):
        return -1
    return int(name.split(".")[2]) if name.startswith("model.layers.") else math.inf


def _is_leaf(name: str, module: nn.Module) -> bool:
    return bool(name) and not list(module.children())


def _is_block(name: str) -> bool:
    return name.startswith("model.layers.") and name.count(".") == 2
