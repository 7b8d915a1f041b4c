"""Hooks of a training run: functions called at intervals, after the state is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Hook:
    """A function called with the number of finished steps, whenever `due(step, num_steps)` is true.

    A resumed run calls the hooks of the step it continues from again, so `call` must be idempotent. If it returns True,
    the run ends there.
    """

    call: Callable[[int], bool | None]
    due: Callable[[int, int], bool]

    def run(self, model: nn.Module, step: int) -> bool:
        """Call it with the model in evaluation mode; returns whether the run is to end."""
        model.eval()
        with torch.no_grad():
            ends = self.call(step)
        model.train()
        return bool(ends)


def every(steps: int, call: Callable[[int], bool | None]) -> Hook:
    """Call after every `steps` steps."""
    return Hook(call, lambda step, num_steps: steps > 0 and step % steps == 0)


def at_shares(shares: Sequence[float], call: Callable[[int], bool | None]) -> Hook:
    """Call once at each of these shares (0 to 1) of the run."""
    return Hook(call, lambda step, num_steps: step in {max(1, round(share * num_steps)) for share in shares})


def evenly(count: int, call: Callable[[int], bool | None]) -> list[Hook]:
    """Call `count` times over the run, at equal distances, the last step included."""
    return [at_shares([number / count for number in range(1, count + 1)], call)] if count else []
