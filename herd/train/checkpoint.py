"""The state that makes a resumed run the same run: masters, moments and the number of steps, by torch DCP.

    state/step-00000120/   DCP files of every process, and written last `manifest.json` with their sizes and hashes

A state is written aside, flushed and renamed, and the one before is kept until the next is whole; so whatever tears a
save (a kill, a full disk), the newest whole state is found, verified, and continued from. Parameters go by name, so
that another number of processes can read them.

A save pauses the training only for a copy in the CPU's memory; a thread of every process writes it. What these threads
have to say to one another goes through a process group of their own: the training's collectives are under way at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from herd.errors import CapacityError, CheckpointError
from herd.log import say, size
from herd.ops.probe import available_memory
from herd.parallel.chunk import Chunk
from herd.parallel.launch import from_all, processes_here

T = TypeVar("T")

KEEP = 2
"""How many states are kept: the newest and the one before."""

_MANIFEST = "manifest.json"
_MOST_OF_MEMORY = 0.5  # of what is free, for copies of the state
_GRACE_SECONDS = 10.0  # less than the 30 that torchrun leaves the others when a process is lost


def save_state(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    keep_every: int = 0,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the state after `step` finished steps; older ones but one are deleted afterwards.

    With `keep_every` the two newest after a multiple of so many steps stay too: what a run can be rolled back to.
    All processes call it together, and talk over `group`. It counts once every process has written its part; whatever
    goes wrong on one is raised on all.

    Raises:
        CapacityError: the disk is full; the states that were there stay as they were.
    """
    target, aside = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    try:
        _together(lambda: _make_room(folder, aside), group)
        _write(tensors, aside, group)
        record = _record(aside, group)
        _together(lambda: _seal(aside, target, record), group)
    except (OSError, dcp.api.CheckpointException) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CapacityError(
            f"{folder}: the training state after step {step} could not be saved ({_cause(error)}; "
            f"{size(shutil.disk_usage(folder.parent).free)} of disk are free). Earlier states are intact: make room "
            "and run the same command again"
        ) from None
    if is_first():
        _delete_old(folder, keep_every)


class StateSaver:
    """Saves states beside the training: a copy is taken, and a thread writes it while the next steps are made.

    Of several processes all make one, and call `save` and `finish` at the same steps. The copies (what this process
    has of masters and moments) stay in the CPU's memory from one save to the next. Where they would take most of what
    is free there, none are made, and the training waits for each save.
    """

    def __init__(self, folder: Path, keep_every: int = 0):
        self.folder, self.keep_every = folder, keep_every
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._copies: dict[str, Tensor] = {}
        self._with_copies: bool | None = None  # not known yet
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, tensors: dict[str, Tensor], *, wait: bool = False) -> None:
        """Begin to save the state after `step` steps, once the one before is written; `wait` until it is on disk.

        Raises:
            CapacityError: the disk is full (of this save, or of the one before), on all processes.
        """
        self.finish()
        if wait or not self._may_copy(tensors):
            save_state(self.folder, step, tensors, self.keep_every, self._group)
            return
        arguments = (step, {name: self._copy(name, tensor) for name, tensor in tensors.items()})
        self._thread = threading.Thread(target=self._write, args=arguments, name="save state", daemon=True)
        self._thread.start()

    def _may_copy(self, tensors: dict[str, Tensor]) -> bool:
        """Whether the copies fit beside all else in this machine's memory; asked once."""
        if self._with_copies is None:
            needed = sum(_local(tensor).nbytes for tensor in tensors.values())
            free = available_memory(torch.device("cpu")) / processes_here()
            self._with_copies = needed <= _MOST_OF_MEMORY * free
            if not self._with_copies:
                say(
                    f"  the training waits while its state is saved: a copy would take {size(needed)} of the "
                    f"{size(free)} of the CPU's memory that are free; a larger save_seconds saves less often"
                )
        return self._with_copies

    @property
    def failed(self) -> bool:
        """Whether the save that was under way has ended with an error, which `finish` raises."""
        return self._error is not None

    def finish(self) -> None:
        """Wait for what is being written, on all processes.

        Raises:
            CapacityError: the disk is full, on all processes.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def abandon(self) -> None:
        """The training fails. What is being written may end well; not for long, where a process may be missing."""
        if self._thread is not None:
            self._thread.join(_GRACE_SECONDS if self._group is not None else None)
        self._thread = self._error = None

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as it is now, a block still knowing its place in the whole."""
        local = _local(tensor)
        if name not in self._copies:
            self._copies[name] = torch.empty(local.shape, dtype=local.dtype, device="cpu")
        copy = self._copies[name].copy_(local)
        return Chunk(copy, tensor.offset, tensor.whole) if isinstance(tensor, Chunk) else copy

    def _write(self, step: int, tensors: dict[str, Tensor]) -> None:
        try:
            save_state(self.folder, step, tensors, self.keep_every, self._group)
        except BaseException as error:  # raised where the training can see it
            self._error = error


def _local(tensor: Tensor) -> Tensor:
    """What this process has of it."""
    return tensor.local if isinstance(tensor, Chunk) else tensor.detach()


def load_state(folder: Path, tensors: dict[str, Tensor], step: int | None = None) -> bool:
    """Fill `tensors` in place from the newest whole state, or from that after `step` steps; false if there is none.

    Raises:
        CheckpointError: there are states but none is whole, or it belongs to another model.
    """
    pattern = "step-*" if step is None else f"step-{step:08d}"
    from_all(None)  # the first process may still be giving the newest its name
    names = from_all({state.name for state in folder.glob(pattern)})  # a process without the storage sees none
    found = [folder / name for name in sorted(set.intersection(*names), reverse=True)]
    for state in found:
        if fault := _fault(state):
            say(f"  {state}: {fault}; trying the one before")
            continue
        try:
            with _quiet():
                dcp.load(tensors, storage_reader=dcp.FileSystemReader(state), no_dist=not dist.is_initialized())
        except (RuntimeError, ValueError, dcp.api.CheckpointException) as error:
            first_line = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{state}: holds the state of another model or optimizer ({first_line})") from None
        return True
    if found:
        raise CheckpointError(f"{folder}: none of its {len(found)} states is whole; delete the folder to start afresh")
    return False


def is_whole(folder: Path, step: int) -> bool:
    """Whether the state after `step` steps is there and undamaged; the same answer on all processes."""
    return _fault(folder / f"step-{step:08d}") is None


def read_masters(folder: Path, weights: dict[str, Tensor]) -> None:
    """Fill whole weights, by name, from the newest whole state, whatever mesh has saved it; rounded to their dtype.

    Raises:
        CheckpointError: there is no whole state.
    """
    states = sorted(folder.glob("step-*"), reverse=True)  # verified when it was loaded, or written just now
    if not states:
        raise CheckpointError(f"{folder}: no state to take the weights from")
    for name, weight in weights.items():  # one at a time: a float32 copy of everything may not fit
        master = {f"master/{name}": torch.empty(weight.shape, dtype=torch.float32)}
        with _quiet():
            dcp.load(master, storage_reader=dcp.FileSystemReader(states[0]), no_dist=True)
        weight.data.copy_(master[f"master/{name}"])


def discard_after(folder: Path, step: int) -> None:
    """Delete the states of more than `step` steps: the run is set back and will make them anew."""
    if is_first():
        for state in folder.glob("step-*"):
            if steps_of(state) > step:
                shutil.rmtree(state)
    from_all(None)  # nobody goes on before they are gone


def steps_of(state: Path) -> int:
    """After how many steps a state or a snapshot was saved, by its name."""
    return int(state.name.removeprefix("step-"))


def discard_state(folder: Path) -> None:
    """Delete all states of a run that is finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _together(act: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """What each process's `act` gives; where one cannot, all raise its error: nobody is left waiting for the others."""
    try:
        mine: T | OSError = act()
    except OSError as error:
        mine = error
    found = from_all(mine, group)
    for one in found:
        if isinstance(one, OSError):
            raise one
    return [one for one in found if not isinstance(one, OSError)]


def _make_room(folder: Path, aside: Path) -> None:
    if is_first():
        shutil.rmtree(aside, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def _write(tensors: dict[str, Tensor], aside: Path, group: dist.ProcessGroup | None) -> None:
    writer, alone = dcp.FileSystemWriter(aside), not dist.is_initialized()
    with _quiet():
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=alone)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong beneath DCP's own report."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next(failure[0] for failure in error.failures.values())
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP tells at length that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _record(aside: Path, group: dist.ProcessGroup | None) -> dict[str, dict[str, Any]]:
    """Size and hash of each file, known to all processes; each reads its share of them."""

    def of_share() -> dict[str, dict[str, Any]]:
        files = _share(sorted(file for file in aside.iterdir() if file.name != _MANIFEST))
        return {file.name: {"bytes": file.stat().st_size, "sha256": _hash(file)} for file in files}

    return {name: record for part in _together(of_share, group) for name, record in part.items()}


def _seal(aside: Path, target: Path, record: dict[str, dict[str, Any]]) -> None:
    """The first process puts down what was written and gives it its name; from here on it counts."""
    if not is_first():
        return
    with open(aside / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)


def _fault(state: Path) -> str | None:
    """What is wrong with a state, or None; the same on all processes, each of which reads its share of the files."""
    return next((fault for fault in from_all(_fault_of_share(state)) if fault), None)


def _fault_of_share(state: Path) -> str | None:
    try:
        record = json.loads((state / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in _share(sorted(record.items())):
            if (state / name).stat().st_size != expected["bytes"] or _hash(state / name) != expected["sha256"]:
                return f"{name} is torn or damaged"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"is incomplete ({error})"
    return None


def _share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items."""
    return items[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else items


def _delete_old(folder: Path, keep_every: int = 0) -> None:
    states = sorted(folder.glob("step-*"))
    anchors = [state for state in states if keep_every and steps_of(state) % keep_every == 0]
    for old in states[:-KEEP]:
        if old not in anchors[-KEEP:]:
            shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0
