"""The order in which the stages of a pipeline run their micro-batches, as a table, without PyTorch.

A stage runs N consecutive micro-batches. N = pipeline is the depth-first schedule (interleaved 1F1B), N = all of them
the breadth-first one; values between trade activation memory against bubble and messages.

Source: The Llama 3 Herd of Models, section 3.3.2.
"""

from __future__ import annotations

from typing import NamedTuple

from herd.errors import ConfigError


class Action(NamedTuple):
    """A stage's forward (F) or backward (B) pass of a micro-batch."""

    stage: int
    kind: str
    micro: int


def pipeline_table(pipeline: int, interleave: int, num_micro: int, contiguous: int = 0) -> list[list[Action | None]]:
    """What each process of the pipeline does at each tick; None is the bubble.

    Forward and backward passes are in rounds of `contiguous` micro-batches (0: `pipeline`; the last round may be
    shorter). A process runs the next forward pass, unless it holds as many activations as the schedule allows,
    (interleave - 1) x contiguous + 2 x (later processes) + 1, or its input is missing; then the next backward pass.

    Raises:
        ConfigError: no micro-batches.
    """
    if num_micro < 1:
        raise ConfigError(f"a pipeline needs at least one micro-batch, not {num_micro}")
    contiguous = min(contiguous or pipeline, num_micro)
    ranks = [_Rank(rank, pipeline, interleave, num_micro, contiguous) for rank in range(pipeline)]
    done: set[Action] = set()
    while any(rank.forwards or rank.backwards for rank in ranks):
        taken = [rank.take(done) for rank in ranks]
        assert any(taken), "the pipeline is stuck"
        done |= {action for action in taken if action}
    return [rank.actions for rank in ranks]


def bubble_share(table: list[list[Action | None]]) -> float:
    """Idle ticks as a share of busy ones, if forward and backward take a tick each."""
    ticks = max(len(actions) for actions in table)
    busy = sum(action is not None for actions in table for action in actions)
    return (ticks * len(table) - busy) / busy


def most_held(actions: list[Action | None]) -> int:
    """The most micro-batches (of one stage each) whose activations a process holds at once."""
    held = most = 0
    for action in filter(None, actions):
        held += 1 if action.kind == "F" else -1
        most = max(most, held)
    return most


class _Rank:
    def __init__(self, rank: int, pipeline: int, interleave: int, num_micro: int, contiguous: int):
        self.last_stage = pipeline * interleave - 1
        stages = [rank + pipeline * index for index in range(interleave)]
        rounds = [range(first, min(first + contiguous, num_micro)) for first in range(0, num_micro, contiguous)]
        self.forwards = [Action(stage, "F", micro) for part in rounds for stage in stages for micro in part]
        self.backwards = [Action(stage, "B", micro) for part in rounds for stage in stages[::-1] for micro in part]
        self.forwards.reverse()  # taken from the end
        self.backwards.reverse()
        self.allowed = (interleave - 1) * contiguous + 2 * (pipeline - 1 - rank) + 1
        self.held = 0
        self.actions: list[Action | None] = []

    def take(self, done: set[Action]) -> Action | None:
        action = None
        if self.forwards and self.held < self.allowed and self._needs(self.forwards[-1]) <= done:
            action = self.forwards.pop()
            self.held += 1
        elif self.backwards and self._needs(self.backwards[-1]) <= done:
            action = self.backwards.pop()
            self.held -= 1
        if action or self.forwards or self.backwards:
            self.actions.append(action)
        return action

    def _needs(self, action: Action) -> set[Action]:
        stage, kind, micro = action
        if kind == "F":
            return {Action(stage - 1, "F", micro)} if stage else set()
        if stage == self.last_stage:
            return {Action(stage, "F", micro)}
        return {Action(stage, "F", micro), Action(stage + 1, "B", micro)}
