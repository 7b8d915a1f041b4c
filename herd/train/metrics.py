"""Sums of metrics over micro-batches and processes, and the speed of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch.distributed as dist

from herd.run import read_metrics
from herd.train.watch import stragglers
from herd.types import Loss


@dataclass
class Totals:
    """The loss and metrics of one optimizer step as (sum, count), over micro-batches and processes."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    """With several processes: which was the slowest, and by how much."""
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    """How long this process computed in this step before it waited for the others."""
    asked_to_end: bool = False
    """Whether this process was asked to end; after `reduce`, whether any was."""
    data_fault: str = ""
    """What is wrong with this process's batches, for a message; after `reduce`, with those of any."""

    def worked(self) -> None:
        """Record that this process now waits for the others."""
        self.seconds = time.perf_counter() - self.began

    def add(self, loss: Loss) -> None:
        """Add one micro-batch; sums are added, except that metrics named `max_...` keep their maximum."""
        for name, (total, count) in {"loss": (loss.sum.detach(), loss.count), **loss.metrics}.items():
            self.sums[name] = _joined(name, [self.sums.get(name, (0.0, 0.0)), (total.item(), count.item())])

    def reduce(self) -> None:
        """Sum over all processes, if there are several."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (self.sums, self.seconds, self.asked_to_end, self.data_fault))
        sums, seconds, asked, faults = zip(*parts)
        if all(seconds):  # not on a mesh, where computing and waiting alternate
            self.ranks = stragglers(list(seconds))
        self.asked_to_end, self.data_fault = any(asked), next(filter(None, faults), "")
        names = dict.fromkeys(name for part in sums for name in part)
        self.sums = {name: _joined(name, [part[name] for part in sums if name in part]) for name in names}

    @property
    def count(self) -> float:
        """The number of tokens or pairs that the loss was summed over."""
        return self.sums.get("loss", (0.0, 0.0))[1]

    def means(self) -> dict[str, float]:
        """Each sum divided by its count; without those whose count is 0."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}


def _joined(name: str, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    if name.startswith("max_"):
        return max((total for total, count in parts if count), default=0.0), float(any(count for _, count in parts))
    return sum(total for total, _ in parts), sum(count for _, count in parts)


class Speed:
    """Tokens per second, and model FLOPs utilization (MFU)."""

    def __init__(self, peak_flops: float = 0.0):
        self.peak_flops = peak_flops
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Start timing a step."""
        self._began = time.perf_counter()

    def figures(self, num_tokens: int, flops: float) -> dict[str, float]:
        """Figures of the step since `begin`, of `num_tokens` tokens and `flops` operations.

        An MFU above 1 is left out: the peak was then measured while the machine was busy, and is too low.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        rate = num_tokens / seconds
        figures = {"seconds": seconds, "tokens_per_second": rate}
        if self.peak_flops and 0 < (mfu := flops / seconds / self.peak_flops) <= 1:
            figures["mfu"] = mfu
        return figures


def headlines(folder: Path) -> dict[str, float]:
    """A run's summary: tokens, the mean loss over its last twentieth, the median speed.

    MFU only if every step has one: a step without it shows that the peak was measured too low (`Speed.figures`).
    """
    rows = read_metrics(folder)
    tail = rows[-max(len(rows) // 20, 1) :]
    names = [name for name in ("tokens_per_second", "mfu") if all(name in row for row in rows)]
    speeds = {name: median(row[name] for row in rows) for name in names}
    figures = {"tokens": rows[-1]["tokens"], "loss": round(fmean(row["loss"] for row in tail), 4)}
    return figures | {name: float(f"{value:.4g}") for name, value in speeds.items()}


def last_means(path: Path, share: float = 0.05) -> dict[str, float]:
    """The means of a run folder's metrics over the last `share` (0 to 1) of its logged steps."""
    rows = read_metrics(path)
    tail = rows[-max(1, round(share * len(rows))) :]
    names = [name for name in tail[-1] if name not in ("step", "tokens", "seconds", "learning_rate")] if tail else []
    return {name: float(f"{fmean(row[name] for row in tail if name in row):.6g}") for name in names}
