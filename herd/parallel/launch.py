"""Connecting the processes that `torchrun` has started; nothing happens with a single process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from herd.errors import UserError
from herd.run import Run, open_run

T = TypeVar("T")

_INTERRUPTED = 130  # the exit status of `herd` after Ctrl-C
_GRACE_SECONDS = 5.0  # how long other processes leave it to the first one to report an error that all have


def num_processes() -> int:
    """How many processes `torchrun` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined(folder: Path | None = None) -> Iterator[torch.device]:
    """Connect to the other processes; yields this one's device. Only the first process prints.

    Errors of the user (UserError) occur on all processes and are reported by the first. NCCL writes its last
    collectives into `folder` when one times out.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if num_processes() == 1:
        yield device
        return
    if gpu:
        torch.cuda.set_device(device)
        if folder:
            switch_on_flight_recorder(folder.resolve())
    _meet("nccl" if gpu else "gloo")
    first = dist.get_rank() == 0
    if not first:
        os.environ["HERD_QUIET"] = "1"
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # outside of `asked_to_end` there is nothing to save
    try:
        yield device
    except UserError:
        if not first:
            time.sleep(_GRACE_SECONDS)
        raise
    except KeyboardInterrupt:
        if not first:  # the first one reports the interruption
            raise SystemExit(_INTERRUPTED) from None
        raise
    dist.destroy_process_group()


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """With several processes, record SIGTERM and Ctrl-C instead of ending, so that all can end together.

    Yields a function that tells whether there was one. An unhandled signal is raised again at the end. Nothing is done
    with a single process.
    """
    if not dist.is_initialized() or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []
    names = (signal.SIGTERM, signal.SIGINT)  # torchrun passes them on, and kills processes that do not end soon
    before = {name: signal.signal(name, lambda number, _: noted.append(number)) for name in names}
    try:
        yield lambda: bool(noted)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    if noted:
        signal.raise_signal(noted[0])


@contextmanager
def open_run_together(path: Path, **what: Any) -> Iterator[Run]:
    """`open_run` for all processes: the first one opens, locks and writes; the others use the same folder.

    Raises:
        UserError: as `open_run`, on every process.
    """
    if not dist.is_initialized():
        with open_run(path, **what) as run:
            yield run
    elif dist.get_rank() == 0:
        entered = False
        try:
            with open_run(path, **what) as run:
                _broadcast(run.manifest)
                entered = True
                yield run
        except UserError as fault:
            if not entered:
                _broadcast(fault)
            raise
    else:
        manifest = _broadcast(None)
        if isinstance(manifest, UserError):
            raise manifest
        yield Run(path, manifest)


def _meet(backend: str) -> None:
    """Connect all processes, with keys specific to this start.

    `torchrun` keeps its store over restarts, with the addresses of dead processes.
    """
    store, rank, world = next(rendezvous("env://"))
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def switch_on_flight_recorder(folder: Path) -> None:
    """Let NCCL record its last 2,000 collectives and write them when one times out; variables already set are kept."""
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_FR_DUMP_TEMP_FILE": str(folder / "flight-"),
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(folder / "flight-"),
    }.items():
        os.environ.setdefault(name, value)


def this_process() -> int:
    """The rank of this process; 0 if it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def agreed(find: Callable[[], T]) -> T:
    """The result of `find` on the first process (a measurement, a choice), on all processes."""
    return _broadcast(find() if this_process() == 0 else None) if dist.is_initialized() else find()


def from_all(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all processes, on all of them; `group` (of all) is for a thread that runs beside training."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def _broadcast(value: Any) -> Any:
    """The first process's value, on all processes."""
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]
