"""The training state, from which a resumed run continues exactly: masters, moments and step count, saved by torch DCP.

    state/step-00000120/   DCP files of every process, and written last `manifest.json` with their sizes and hashes

A state is written to a temporary folder, flushed and renamed, and the previous one is kept until the next is complete.
So after an interrupted save (a kill, a full disk) the newest complete state is found, verified and used. Parameters are
stored by name, so that another number of processes can read them.

A thread of every process writes while training goes on. A large state in CPU memory is written in place, and only the
next update waits for it; otherwise training pauses for a copy. These threads have their own process group, because the
training's collectives run at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
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
from herd.parallel.chunk import LocalShard
from herd.parallel.launch import from_all, processes_here

T = TypeVar("T")

KEEP = 2
"""How many states are kept: the newest and the previous one."""
SMALL = 2**28
"""Largest state in bytes that is copied even from CPU memory, so that no update waits."""

_MANIFEST = "manifest.json"
_MOST_OF_MEMORY = 0.5  # of the free memory, for copies of the state
_WAITING = 0.05  # the largest share of a run's time in which updates wait for a save
_GRACE_SECONDS = 10.0  # less than the 30 that torchrun gives the others when a process is lost


def save_state(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    keep_every: int = 0,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the state after `step` finished steps, and delete all older ones except the previous.

    With `keep_every` the two newest states at multiples of that many steps are kept too, for rollbacks. All processes
    call it together and communicate over `group`. The state is valid once every process has written its part; an error
    on one process is raised on all.

    Raises:
        CapacityError: the disk is full; earlier states are intact.
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
            f"{size(shutil.disk_usage(folder.parent).free)} of disk are free). Earlier states are intact: free disk "
            "space and run the same command again"
        ) from None
    if is_first():
        _delete_old(folder, keep_every)


class StateSaver:
    """Saves states asynchronously: a thread writes while training goes on.

    Every process has one, and all call `save` and `finish` at the same steps. A state of more than SMALL bytes in CPU
    memory is written in place: forward and backward passes do not change masters and moments, and only the next update
    waits (`release`). Otherwise a copy is written. The copies (this process's part of masters and moments) stay
    allocated in CPU memory between saves. If they would take more than half of the free memory, no copies are made, and
    training waits for each save.
    """

    def __init__(self, folder: Path, keep_every: int = 0):
        self.folder, self.keep_every = folder, keep_every
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._copies: dict[str, Tensor] = {}
        self._way: str | None = None  # not known yet
        self._is_live = False
        self._waited = 0.0  # seconds, of the update that waited last
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, tensors: dict[str, Tensor], *, wait: bool = False) -> None:
        """Start saving the state after `step` steps, once the previous save has ended; `wait` until it is on disk.

        Raises:
            CapacityError: the disk is full (in this save or the previous one), on all processes.
        """
        self.finish()
        if wait or (way := self._way_for(tensors)) == "wait":
            save_state(self.folder, step, tensors, self.keep_every, self._group)
            return
        self._is_live = way == "live"
        written = tensors if self._is_live else {name: self._copy(name, one) for name, one in tensors.items()}
        self._thread = threading.Thread(target=self._write, args=(step, written), name="save state", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Wait for a save in place, before an update changes masters and moments."""
        if self._thread is not None and self._is_live:
            began = time.monotonic()
            self._thread.join()
            self._waited = time.monotonic() - began

    @property
    def rest_seconds(self) -> float:
        """Least time until the next save, so that updates wait for a small share of the time only."""
        return self._waited / _WAITING

    def _way_for(self, tensors: dict[str, Tensor]) -> str:
        """How to save: `live` (in place), `copy`, or `wait` if copies do not fit into free memory; determined once."""
        if self._way is None:
            needed = sum(_local(tensor).nbytes for tensor in tensors.values())
            free = available_memory(torch.device("cpu")) / processes_here()
            in_memory = all(_local(tensor).device.type == "cpu" for tensor in tensors.values())
            self._way = "copy" if needed <= _MOST_OF_MEMORY * free else "wait"
            if in_memory and needed > SMALL:
                self._way = "live"
            elif self._way == "wait":
                say(
                    f"  training pauses for each save: a copy of its state would take {size(needed)} of the "
                    f"{size(free)} of free CPU memory; a larger save_seconds saves less often"
                )
        return self._way

    @property
    def failed(self) -> bool:
        """Whether the running save has ended with an error, which `finish` raises."""
        return self._error is not None

    def finish(self) -> None:
        """Wait for the running save, on all processes.

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
        """After training failed: let the running save end, but wait only briefly if another process may be gone."""
        if self._thread is not None:
            self._thread.join(_GRACE_SECONDS if self._group is not None else None)
        self._thread = self._error = None

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of a tensor; of a shard, with its position in the whole tensor."""
        local = _local(tensor)
        if name not in self._copies:
            self._copies[name] = torch.empty(local.shape, dtype=local.dtype, device="cpu")
        copy = self._copies[name].copy_(local)
        return LocalShard(copy, tensor.offset, tensor.whole) if isinstance(tensor, LocalShard) else copy

    def _write(self, step: int, tensors: dict[str, Tensor]) -> None:
        try:
            save_state(self.folder, step, tensors, self.keep_every, self._group)
        except BaseException as error:  # raised where the training can see it
            self._error = error


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.local if isinstance(tensor, LocalShard) else tensor.detach()


def load_state(folder: Path, tensors: dict[str, Tensor], step: int | None = None) -> bool:
    """Fill `tensors` in place from the newest complete state, or the one after `step` steps; false if there is none.

    Raises:
        CheckpointError: there are states but all are damaged, or it belongs to another model.
    """
    pattern = "step-*" if step is None else f"step-{step:08d}"
    from_all(None)  # the first process may still be renaming the newest
    names = from_all({state.name for state in folder.glob(pattern)})  # a process without shared storage sees none
    states = [folder / name for name in sorted(set.intersection(*names), reverse=True)]
    for state in states:
        if fault := _fault(state):
            say(f"  {state}: {fault}; trying the previous one")
            continue
        try:
            with _quiet():
                dcp.load(tensors, storage_reader=dcp.FileSystemReader(state), no_dist=not dist.is_initialized())
        except (RuntimeError, ValueError, dcp.api.CheckpointException) as error:
            first_line = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{state}: holds the state of another model or optimizer ({first_line})") from None
        return True
    if states:
        raise CheckpointError(f"{folder}: all {len(states)} states in it are damaged; delete the folder to start over")
    return False


def is_whole(folder: Path, step: int) -> bool:
    """Whether the state after `step` steps exists and is undamaged; the same answer on all processes."""
    return _fault(folder / f"step-{step:08d}") is None


def read_masters(folder: Path, weights: dict[str, Tensor]) -> None:
    """Fill unsharded weights, by name, from the newest state, saved on any mesh; they are rounded to their dtype.

    Raises:
        CheckpointError: there is no state.
    """
    states = sorted(folder.glob("step-*"), reverse=True)  # verified when it was loaded, or written just now
    if not states:
        raise CheckpointError(f"{folder}: there is no training state to read the weights from")
    for name, weight in weights.items():  # one at a time: a float32 copy of all of them may not fit
        master = {f"master/{name}": torch.empty(weight.shape, dtype=torch.float32)}
        with _quiet():
            dcp.load(master, storage_reader=dcp.FileSystemReader(states[0]), no_dist=True)
        weight.data.copy_(master[f"master/{name}"])


def discard_after(folder: Path, step: int) -> None:
    """Delete the states after `step`, before a rollback to it."""
    if is_first():
        for state in folder.glob("step-*"):
            if steps_of(state) > step:
                shutil.rmtree(state)
    from_all(None)  # a barrier: no process continues before they are deleted


def steps_of(state: Path) -> int:
    """The number of steps after which a state or a snapshot was saved, from its name."""
    return int(state.name.removeprefix("step-"))


def discard_state(folder: Path) -> None:
    """Delete all states of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def _together(act: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """The results of `act` on each process; if it fails on one, all raise its error, so that none waits forever."""
    try:
        mine: T | OSError = act()
    except OSError as error:
        mine = error
    results = from_all(mine, group)
    for result in results:
        if isinstance(result, OSError):
            raise result
    return [result for result in results if not isinstance(result, OSError)]


def _make_room(folder: Path, aside: Path) -> None:
    if is_first():
        shutil.rmtree(aside, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def _write(tensors: dict[str, Tensor], aside: Path, group: dist.ProcessGroup | None) -> None:
    writer, alone = dcp.FileSystemWriter(aside), not dist.is_initialized()
    with _quiet():
        dcp.save(
            {name: _apart(tensor) for name, tensor in tensors.items()},
            storage_writer=writer,
            process_group=group,
            no_dist=alone,
        )


def _apart(tensor: Tensor) -> Tensor:
    """The same memory as a tensor with its own storage: DCP copies each view, and keeps all copies until the end."""
    local = _local(tensor)
    if local.device.type != "cpu" or not local.is_contiguous() or local.untyped_storage().nbytes() == local.nbytes:
        return tensor
    alone = torch.from_numpy(local.view(-1).view(torch.uint8).numpy()).view(local.dtype).view(local.shape)
    return LocalShard(alone, tensor.offset, tensor.whole) if isinstance(tensor, LocalShard) else alone


def _cause(error: BaseException) -> str:
    """The first line of the error that DCP wraps in its own."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next(failure[0] for failure in error.failures.values())
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence DCP's warnings about running in a single process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _record(aside: Path, group: dist.ProcessGroup | None) -> dict[str, dict[str, Any]]:
    """Size and hash of each file, on all processes; each process reads its share of the files."""

    def of_share() -> dict[str, dict[str, Any]]:
        files = _share(sorted(file for file in aside.iterdir() if file.name != _MANIFEST))
        return {file.name: {"bytes": file.stat().st_size, "sha256": _hash(file)} for file in files}

    return {name: record for part in _together(of_share, group) for name, record in part.items()}


def _seal(aside: Path, target: Path, record: dict[str, dict[str, Any]]) -> None:
    """On the first process: write the manifest and rename the folder, which makes the state valid."""
    if not is_first():
        return
    with open(aside / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)


def _fault(state: Path) -> str | None:
    """What is wrong with a state, or None; the same on all processes, each of which checks its share of the files."""
    return next((fault for fault in from_all(_fault_of_share(state)) if fault), None)


def _fault_of_share(state: Path) -> str | None:
    try:
        record = json.loads((state / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in _share(sorted(record.items())):
            if (state / name).stat().st_size != expected["bytes"] or _hash(state / name) != expected["sha256"]:
                return f"{name} is incomplete or damaged"
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
