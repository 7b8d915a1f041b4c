"""Handling of bad steps: detecting outliers, skipping data, rolling back, and locating the first NaN or infinity.

A step whose loss or gradient norm is far above the recent ones can do lasting harm. `skip` skips its data; `rollback`
also undoes the steps since the last state kept for rollbacks (at fixed steps, not times, so that a run killed anywhere
does the same), and skips their data too; `stop` ends the run. Skipped steps are recorded in the run folder
(`skips.json`) before they take effect, so that a resumed run does the same; the schedule of other data is unchanged.
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

_LEAST_STEPS = 16  # with fewer steps to compare with, nothing is an outlier
_TO_DEVIATION = 1.4826  # from the median absolute deviation of a normal distribution to its standard deviation


@settings
class StabilitySettings:
    """What counts as an outlier, and what is done about one."""

    may_change: ClassVar[tuple[str, ...]] = ("action", "most")  # a run that stopped may go on and skip

    deviations: float = 0.0
    """Standard deviations above the recent median at which a loss or gradient norm is an outlier; 0: only NaN and
    infinity are."""
    window_steps: int = 128
    """Number of recent steps that a new one is compared with."""
    action: Literal["stop", "skip", "rollback"] = "stop"
    """Stop the run; skip the step's data; or roll back some steps and skip the data since then."""
    rollback_steps: int = 100
    """Steps between the states that `rollback` can return to: with 100, those after 0, 100, 200, ... steps."""
    most: int = 20
    """Number of outliers after which the run is stopped anyway."""

    def __post_init__(self) -> None:
        if self.rollback_steps < 1:
            raise ValueError("rollback_steps must be at least 1")
        if self.deviations < 0 or self.window_steps < _LEAST_STEPS or self.most < 0:
            raise ValueError(f"deviations and most must be 0 or more, window_steps at least {_LEAST_STEPS}")


class Monitor:
    """Compares each step's loss and gradient norm with those of recent steps."""

    def __init__(self, options: StabilitySettings, rows: Iterable[dict[str, Any]] = ()):
        self.options = options
        self._recent: deque[tuple[float, float]] = deque(maxlen=options.window_steps)
        for row in rows:
            self.accept(row["loss"], row["gradient_norm"])

    def accept(self, loss: float, norm: float) -> None:
        """Record a step that was taken."""
        self._recent.append((loss, norm))

    def fault(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step, for a message; None if it may be taken."""
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
    """Ranges of skipped steps of the data schedule, stored in the order in which they were found."""

    def __init__(self, folder: Path, given: Sequence[str] = ()):
        self._file = folder / "skips.json"
        self.found: list[dict[str, Any]] = read_record(self._file) if self._file.exists() else []
        self._given = [step_range(text) for text in given]

    def place(self, step: int) -> int:
        """The step of the data schedule that the run's step `step` (from 0) uses."""
        for first, last in self._merged():
            if step >= first:
                step += last - first
        return step

    def passed_over(self, place: int) -> list[tuple[int, int]]:
        """The skipped ranges before a step of the data schedule."""
        return [(first, last) for first, last in self._merged() if first < place]

    def add(self, first: int, last: int, reason: str, write: bool = True) -> None:
        """Skip the data of steps `first` up to, not including, `last`."""
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
    """From `120-139` or `120` (counted from 1, inclusive, as in metrics.jsonl) to a half-open range counted from 0.

    Raises:
        DataError: it is neither.
    """
    try:
        numbers = [int(part) for part in text.split("-")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or numbers[0] < 1 or numbers[-1] < numbers[0]:
        raise DataError(f"skip_steps: {text!r} is no range of steps; write `120` or `120-139`, counted from 1")
    return numbers[0] - 1, numbers[-1]


def culprit(model: Llama | ParallelModel, objective: Objective, batches: Sequence[Batch]) -> str:
    """Where the first NaN or infinity appears: in a layer's output in the forward pass, else in a gradient.

    All processes call it together, each with its own batches; the ranks where it appears are named.
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
    return _described(sightings)


@dataclass(frozen=True, order=True)
class _Sighting:
    """A NaN or infinity, ordered by when it is computed: outputs first, then gradients, last layers first."""

    backward: bool
    layer: float  # negative for a gradient, and so is `call`
    call: int  # index of the module call in this process, or of the parameter
    name: str = field(compare=False)


def _run(model: Llama, objective: Objective, batches: Sequence[Batch], found: list[_Sighting]) -> None:
    """Forward and backward, batch by batch, until something is found."""
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
    """Record the first layer whose output has a NaN or infinity."""
    found: list[_Sighting] = []
    calls = itertools.count()

    def looks(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            call = next(calls)
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(_Sighting(False, _layer(name), call, f"the output of {name}"))

        return look

    modules = [(n, m) for model in models for n, m in model.named_modules() if _is_leaf(n, m) or _is_block(n)]
    # before the hooks of tensor parallelism, which sum over processes
    handles = [module.register_forward_hook(looks(name), prepend=True) for name, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _look_at_losses(losses: Sequence[Loss], found: list[_Sighting]) -> None:
    if not found and not all(bool(torch.isfinite(loss.sum)) for loss in losses):
        found.append(_Sighting(False, math.inf, sys.maxsize, "the objective"))


def _bad_gradient(models: Sequence[nn.Module]) -> list[_Sighting]:
    """The gradient nearest to the loss that has a NaN or infinity, if any."""
    gradients = [(n, local_part(p.grad)) for model in models for n, p in model.named_parameters() if p.grad is not None]
    bad = [index for index, (_, gradient) in enumerate(gradients) if not bool(torch.isfinite(gradient).all())]
    if not bad:
        return []
    name = gradients[bad[-1]][0]
    return [_Sighting(True, -_layer(name), -bad[-1], f"the gradient of {name}")]


def _described(sightings: Sequence[Sequence[_Sighting]]) -> str:
    """The earliest of all processes' findings, and which ranks have it."""
    if not (seen := [one for found in sightings for one in found]):
        return "computed again it does not appear, so suspect a hardware fault of this machine"
    first = min(seen)
    ranks = [str(rank) for rank, found in enumerate(sightings) if [one.name for one in found] == [first.name]]
    where = f" on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" if len(sightings) > 1 else ""
    return f"it first appears in {first.name}{where}"


def _layer(name: str) -> float:
    """A module's or parameter's position: the embedding first, then the layers, then norm and head."""
    if name.startswith("model.embed_tokens"):
        return -1
    return int(name.split(".")[2]) if name.startswith("model.layers.") else math.inf


def _is_leaf(name: str, module: nn.Module) -> bool:
    return bool(name) and not list(module.children())


def _is_block(name: str) -> bool:
    return name.startswith("model.layers.") and name.count(".") == 2
