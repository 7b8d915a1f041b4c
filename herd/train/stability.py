"""What happens when a step goes wrong: outliers found, steps passed over, runs set back, and a name for the culprit.

A step whose loss or gradient norm stands far above those before it can do harm that lasts. `skip` passes its data over;
`rollback` also takes back the steps since the last of the states kept for that (a function of the step, not of the
clock, so that a run killed anywhere does the same), and passes over their data too; `stop` ends the run.
What is passed over is recorded in the run folder (`skips.json`) before it takes effect, so that a resumed run does the
same, and every other sample stays where the schedule has it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from herd.config import settings
from herd.errors import DataError
from herd.run import atomic_write
from herd.types import Batch

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

    def __post_init__(self):
        if self.rollback_steps < 1:
            raise ValueError("rollback_steps must be at least 1")
        if self.deviations < 0 or self.window_steps < _LEAST_STEPS or self.most < 0:
            raise ValueError(f"deviations and most must be 0 or more, window_steps at least {_LEAST_STEPS}")


class Monitor:
    """Compares each step's loss and gradient norm with those of the steps before."""

    def __init__(self, options: StabilitySettings, rows: Iterable[dict] = ()):
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
        self.found: list[dict] = json.loads(self._file.read_text()) if self._file.exists() else []
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


def culprit(model: nn.Module, objective: Callable, batches: Sequence[Batch]) -> str:
    """Where a number that is none appears first: forwards in a layer's result, else backwards in a gradient."""
    found: list[str] = []
    modules = [(n, m) for n, m in model.named_modules() if (n and not list(m.children())) or _is_block(n)]

    def looks(name: str) -> Callable:
        def look(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return look

    handles = [module.register_forward_hook(looks(name)) for name, module in modules]
    device = next(model.parameters()).device
    try:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            loss = model.run(objective, batch.to(device))
            if not found and not bool(torch.isfinite(loss.sum)):
                found.append("the objective")
            if found:
                return f"it appears first in the result of {found[0]}"
            loss.sum.backward()
            bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
            if bad:
                return f"it appears first in the gradient of {bad[-1]}"
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return "computed again it does not appear: look for a fault of this machine"


def _is_block(name: str) -> bool:
    return name.startswith("model.layers.") and name.count(".") == 2
