"""Schedules of learning rate and batch size: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar, Literal

from herd.config import settings
from herd.data.loader import Phase


@settings
class ScheduleSettings:
    """The learning rate schedule, as a share of the peak."""

    shape: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Decay after the warm-up; wsd: constant at the peak, then linear decay over the last `decay_share`."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_share: float = 0.0
    """The same as a share (0 to 1) of the run's steps, instead of their number."""
    final_share: float = 0.01
    """Learning rate at the end, as a share of the peak; ignored by constant."""
    decay_share: float = 0.2
    """wsd: share (0 to 1) of the run's steps that decay."""
    steps: int | None = None
    """Length of the schedule in steps, by default the run's; a shorter run ends above `final_share`."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or (self.steps is not None and self.steps < 1):
            raise ValueError("warmup_steps must be 0 or more, steps at least 1")
        if not 0 <= self.final_share <= 1 or not 0 <= self.warmup_share <= 1:
            raise ValueError("final_share and warmup_share must be between 0 and 1")
        if not 0 < self.decay_share <= 1:
            raise ValueError("decay_share must be above 0 and at most 1")
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give warmup_steps or warmup_share, not both")

    @property
    def anneals(self) -> bool:
        """Whether the learning rate reaches 0 at the end of the run."""
        return self.shape != "constant" and self.final_share == 0 and self.steps is None

    def warmup(self, num_steps: int) -> int:
        """Warm-up steps in a run of `num_steps`."""
        return min(self.warmup_steps or round(self.warmup_share * num_steps), num_steps)


@settings
class BatchSettings:
    """Tokens of a step, and the length of their rows."""

    may_change: ClassVar[tuple[str, ...]] = ("micro_tokens",)  # the same rows, on a smaller or larger machine

    tokens: int = 8192
    """Tokens of one optimizer step, over all processes, after the ramp."""
    row_tokens: int = 256
    """Tokens of a packed row: the context length."""
    micro_tokens: int = 4096
    """Tokens per micro-batch; gradients are accumulated over the micro-batches of a step."""
    double_at: list[float] = field(default_factory=list)
    """Batch ramp: shares of the run (0 to 1) at which the batch doubles, up to `tokens`."""
    first_row_tokens: int | None = None
    """Tokens of a row before the first doubling, for shorter rows at first."""

    def __post_init__(self) -> None:
        if min(self.tokens, self.row_tokens, self.micro_tokens) < 1:
            raise ValueError("tokens, row_tokens and micro_tokens must be positive")
        if sorted(self.double_at) != list(self.double_at) or not all(0 < share < 1 for share in self.double_at):
            raise ValueError("double_at must be ascending shares between 0 and 1")
        if self.first_row_tokens is not None and not 0 < self.first_row_tokens <= self.row_tokens:
            raise ValueError("first_row_tokens must be positive and at most row_tokens")

    def check_whole_rows(self) -> None:
        """Refuse shorter first rows: conversations and pairs must fit into a row (ValueError)."""
        if self.first_row_tokens is not None:
            raise ValueError("batch.first_row_tokens is only for pretrain: conversations and pairs are never split")

    def row_tokens_at(self, part: int) -> int:
        """Tokens of a row in a part of the ramp, counted from 0."""
        return self.first_row_tokens if self.first_row_tokens and part == 0 and self.double_at else self.row_tokens


def learning_rate(schedule: ScheduleSettings, peak: float, step: int, num_steps: int) -> float:
    """The learning rate of optimizer step `step` (counted from 0) in a run of `num_steps`.

    The first of w warm-up steps has 1/w of the peak, the last one (without a warm-up, the run's first step) the peak;
    the last step of the decay has `final_share`. A run of one step has the peak.

    Source of `wsd` (warm-up, stable, decay): Hu et al. 2024, arXiv 2404.06395.
    """
    warmup = schedule.warmup(num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.shape == "constant":
        return peak
    at_peak = max(warmup - 1, 0)
    last = (schedule.steps or num_steps) - 1
    if schedule.shape == "wsd":  # the decay begins after the last step at the peak
        at_peak = max(at_peak, last - max(1, round(schedule.decay_share * (last + 1))))
    progress = min(max(step - at_peak, 0) / max(last - at_peak, 1), 1.0)
    decay = (1 + math.cos(math.pi * progress)) / 2 if schedule.shape == "cosine" else 1 - progress
    return peak * (schedule.final_share + (1 - schedule.final_share) * decay)


def phases(
    batch: BatchSettings,
    num_steps: int,
    mixture: Mapping[str, float],
    mixture_at: Mapping[float, Mapping[str, float]] | None = None,
) -> list[Phase]:
    """The loader's phases of a run: a new one at each doubling of the batch and each change of the mixture."""
    begins = [0] + [round(share * num_steps) for share in batch.double_at]
    sizes = [batch.tokens >> (len(begins) - 1 - index) for index in range(len(begins))]
    rows = [batch.row_tokens_at(part) for part in range(len(begins))]
    ramp = dict(zip(begins, zip(sizes, rows)))
    mixtures = {0: mixture} | {round(share * num_steps): later for share, later in sorted((mixture_at or {}).items())}
    result = []
    for step in sorted({*ramp, *mixtures}):
        size, length = ramp[max(begin for begin in ramp if begin <= step)]
        weights = mixtures[max(begin for begin in mixtures if begin <= step)]
        result.append(Phase(step=step, batch_tokens=size, row_tokens=length, mixture=weights))
    return result


def steps_for(batch: BatchSettings, tokens: float) -> int:
    """How many steps process about `tokens` tokens, with the ramp taken into account."""
    edges = [0.0, *batch.double_at, 1.0]
    lengths = [batch.row_tokens_at(part) for part in range(len(edges) - 1)]
    sizes = [max(1, round((batch.tokens >> k) / lengths[-1 - k])) for k in reversed(range(len(edges) - 1))]
    mean = sum((edges[i + 1] - edges[i]) * sizes[i] * lengths[i] for i in range(len(sizes)))
    return max(1, round(tokens / mean))
