"""Where the batches of a run come from: packed data, or what is made while the training goes on.

A source gives the same batches whenever it is asked for the same step: that is what makes a killed run continue as if
nothing had happened. `PackedLoader` computes them from the step. What is drawn from the model itself cannot be computed
again, so `Made` keeps it:

    state/batches/step-00000120.pt   what step 120 of the source is learned from, until no state leads back to it
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol, cast

import torch

from herd.errors import CapacityError, CheckpointError, DataError
from herd.parallel.launch import agreed, from_all
from herd.run import atomic_write
from herd.train.checkpoint import steps_of
from herd.types import IGNORE, Batch

_TENSORS = ("tokens", "labels", "positions", "document_ids")
_FOLDER = "batches"


class BatchSource(Protocol):
    """What `Trainer.fit` asks of whatever it learns from; steps are counted from 0."""

    @property
    def names(self) -> Sequence[str]:
        """Of the sources that the batches' column `source` counts, for messages."""
        ...

    @property
    def row_tokens(self) -> int:
        """Places in a row of the first step, for the arithmetic rate."""
        ...

    def tokens_before(self, step: int) -> int:
        """Places in the rows of all steps before this one, over all processes."""
        ...

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, as many as every other process has; always the same ones."""
        ...


class Made:
    """Batches that are made when their step comes, and kept in a run's `state/` so that a killed run replays them.

    `make(step)` gives the rows that this process has made (with `world` > 1 each its share, none is fine), with the
    model as it is after the steps before. The rows of a step hold `step_tokens` places over all processes. A process
    sees every `world`-th micro-batch of them, whichever process has made it; so a run that continues on another number
    of processes replays the same.

    With `varying` a step may hold any number of places, and `step_tokens` is the guess for steps that are not made yet.
    With `together` above 1 one making serves so many steps: `make(step)` then gives a list of batches for each.
    """

    def __init__(
        self,
        state: Path,
        make: Callable[[int], Sequence[Batch] | Sequence[Sequence[Batch]]],
        *,
        row_tokens: int,
        step_tokens: int,
        varying: bool = False,
        together: int = 1,
        name: str = "made",
        rank: int = 0,
        world: int = 1,
    ):
        self.folder, self.make, self.names = state / _FOLDER, make, (name,)
        self.row_tokens, self.step_tokens, self.rank, self.world = row_tokens, step_tokens, rank, world
        self.varying, self.together = varying, together
        self._ledger = self.folder / "places.json"
        self._places: dict[int, int] = agreed(lambda: _read_places(self._ledger)) if varying else {}

    def tokens_before(self, step: int) -> int:
        """Places in the rows of all steps before this one."""
        known = [count for made, count in self._places.items() if made < step]
        return sum(known) + (step - len(known)) * self.step_tokens

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches: those that were kept, or new ones, which are kept before they are given.

        Raises:
            CapacityError: the disk is full.
            CheckpointError: what was kept is damaged.
            DataError: nothing was made.
        """
        file = self._file(step)
        if not agreed(file.exists):
            first = step - step % self.together
            for later, batches in enumerate(self._made(first), first):
                if later == step or not agreed(self._file(later).exists):
                    self._count(later, batches)
                    _keep(self._file(later), batches)
        found, fault = agreed(lambda: _read(file))
        if fault:
            raise CheckpointError(
                f"{file}: damaged ({fault}); delete it, and other batches are made for this step: the run then goes "
                "on, but not as it would have gone"
            )
        most = -(-len(found) // self.world)
        mine = found[self.rank :: self.world]
        return mine + [_nothing(found[0])] * (most - len(mine))

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _made(self, first: int) -> list[list[Batch]]:
        """What all processes have made for each of the steps from `first` on, those of one share of the rows counted
        once."""
        with torch.no_grad():
            made = self.make(first)
            steps = cast(Sequence[Sequence[Batch]], made if self.together > 1 else [made])
            mine = [[batch.to("cpu") for batch in batches] for batches in steps]
        shares = dict(reversed(from_all((self.rank, mine))))
        found = []
        for place in range(self.together):
            if not (batches := [batch for rank in sorted(shares) for batch in shares[rank][place]]):
                raise DataError(f"step {first + place + 1}: nothing was made to learn from")
            places, step = sum(batch.tokens.numel() for batch in batches), first + place + 1
            if places != self.step_tokens and not self.varying:
                raise DataError(f"step {step}: {places:,} places were made, and a step has {self.step_tokens:,}")
            found.append(batches)
        return found

    def _count(self, step: int, batches: Sequence[Batch]) -> None:
        """Note how many places a step has, where that varies, for as long as the run lasts."""
        if not self.varying:
            return
        self._places[step] = sum(batch.tokens.numel() for batch in batches)
        if agreed(lambda: _write_places(self._ledger, self._places)):
            raise CapacityError(f"{self._ledger}: could not be written; make room and go on")


def drop_passed(state: Path, place: Callable[[int], int]) -> None:
    """Delete kept batches that no state on disk leads back to; `place` is where a run's step lies in the source."""
    states = [steps_of(one) for one in state.glob("step-*")]
    first = place(min(states)) if states else 0
    for file in (state / _FOLDER).glob("step-*.pt"):
        if int(file.stem.removeprefix("step-")) < first:
            file.unlink(missing_ok=True)


def _keep(file: Path, batches: Sequence[Batch]) -> None:
    """Whole on disk, and known to be there by all processes, before anyone learns from them."""
    fault = agreed(lambda: _write(file, batches))
    if fault:
        raise CapacityError(f"{file}: the batches that were made could not be kept ({fault}); make room and go on")


def _write(file: Path, batches: Sequence[Batch]) -> str:
    content = [{name: getattr(one, name) for name in _TENSORS} | {"columns": one.columns} for one in batches]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        atomic_write(file, buffer.getvalue())
    except OSError as error:
        return str(error)
    return ""


def _read(file: Path) -> tuple[list[Batch], str]:
    """What was kept, or what is wrong with it."""
    try:
        return [Batch(**content) for content in torch.load(file, weights_only=True)], ""
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, UnpicklingError) as error:
        return [], str(error).splitlines()[0] if str(error) else type(error).__name__


def _read_places(file: Path) -> dict[int, int]:
    if not file.exists():
        return {}
    try:
        return {int(step): int(count) for step, count in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); delete it, and tokens are counted from here on") from None


def _write_places(file: Path, places: dict[int, int]) -> str:
    try:
        atomic_write(file, json.dumps(places))
    except OSError as error:
        return str(error)
    return ""


def _nothing(like: Batch) -> Batch:
    """A row of padding, in which nothing is learned: for a process that would have no batch."""
    row = {name: getattr(like, name)[:1].clone() for name in _TENSORS}
    row["labels"].fill_(IGNORE)
    row["document_ids"].fill_(-1)
    return Batch(**row, columns={name: torch.zeros_like(column[:1]) for name, column in like.columns.items()})
