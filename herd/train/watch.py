"""Heartbeats and a watchdog: which rank is slow, which one hangs, and where.

Each process writes what it is doing into `ranks/` of the run folder. After `hang_seconds` without progress, every
process's watchdog writes `hang.txt` (what each rank is doing, and which one the others wait for) and the stack traces
of all threads. Then it ends its process, so that `torchrun --max-restarts` restarts all of them from the last state.
NCCL's flight recorder is switched on; its dumps show the collective.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TextIO

import torch.distributed as dist

HUNG = 75
"""Exit status of a process that its watchdog has ended (EX_TEMPFAIL: try again)."""
_NATIVE_GRACE = 1.5  # x hang_seconds: then faulthandler's C thread ends the process, even if the interpreter is stuck


class Watchdog:
    """The heartbeat of this process, and a thread that checks it; with `hang_seconds` 0 only the heartbeat."""

    def __init__(self, folder: Path, hang_seconds: float):
        self.folder, self.hang_seconds = folder, hang_seconds
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._doing, self._step, self._moved = "setting up", 0, time.monotonic()
        self._ended = threading.Event()
        self._stacks: TextIO | None = None
        if self.world > 1:
            (folder / "ranks").mkdir(exist_ok=True)
        if hang_seconds:
            self._stacks = open(folder / f"stacks-rank-{self.rank}.txt", "a")  # noqa: SIM115 (open while we live)
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def now(self, step: int, doing: str) -> None:
        """Record progress: the number of finished steps, and what this process is doing."""
        self._step, self._doing, self._moved = step, doing, time.monotonic()
        if self.world > 1:
            _place(self.folder, self.rank).write_text(json.dumps({"step": step, "doing": doing, "since": time.time()}))
        if self._stacks:
            seconds = self.hang_seconds * _NATIVE_GRACE
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._stacks)

    def close(self) -> None:
        """Stop the watchdog at the end of the run."""
        self._ended.set()
        if self._stacks:
            faulthandler.cancel_dump_traceback_later()
            self._stacks.close()
            if not (path := Path(self._stacks.name)).stat().st_size:
                path.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(min(self.hang_seconds / 4, 5.0)):
            if time.monotonic() - self._moved > self.hang_seconds:
                self._give_up()

    def _give_up(self) -> None:
        report = hang_report(self.folder, self.world, self._step, self._doing, self.hang_seconds)
        try:
            with open(self.folder / f"hang{f'-rank-{self.rank}' if self.world > 1 else ''}.txt", "a") as file:
                file.write(report + "\n")  # after those of earlier starts
            if self._stacks:
                faulthandler.dump_traceback(self._stacks, all_threads=True)
            print(f"rank {self.rank}: {report}", file=sys.stderr, flush=True)
        finally:
            os._exit(HUNG)  # a stuck collective cannot be interrupted


def hang_report(folder: Path, world: int, step: int, doing: str, seconds: float) -> str:
    """What each rank was doing when progress stopped, and which ranks the others wait for."""
    head = f"no progress for {seconds:g} s at step {step + 1}, in {doing}"
    if world == 1:
        return head
    places = [_read(folder, rank) for rank in range(world)]
    lines = [
        f"rank {rank}: {'no heartbeat' if place is None else f'step {place[0] + 1}, {place[1]}'}"
        for rank, place in enumerate(places)
    ]
    known = [place for place in places if place]
    waiting = [place[1].startswith(COLLECTIVE) for place in known]
    least = min(place[0] for place in known)
    behind = [
        rank
        for rank, place in enumerate(places)
        if place is None or place[0] > least or (any(waiting) and not place[1].startswith(COLLECTIVE))
    ]
    ahead = [rank for rank in behind if (place := places[rank]) and place[0] > least]
    late = [rank for rank in behind if rank not in ahead]
    culprits = late or [rank for rank, place in enumerate(places) if place and place[0] == least]
    names = ", ".join(map(str, culprits))
    return "\n".join([head, f"the others wait for rank {names}", *lines])


COLLECTIVE = "collective: "
"""Prefix of a heartbeat that waits for other processes."""


def stragglers(seconds: list[float]) -> dict[str, float]:
    """Metrics of one step from the seconds that each rank computed before it waited for the others."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    middle = median(seconds)
    return {"slowest_rank": slowest, "slowest_over_median": seconds[slowest] / middle if middle else 1.0}


def _place(folder: Path, rank: int) -> Path:
    return folder / "ranks" / f"rank-{rank}.json"


def _read(folder: Path, rank: int) -> tuple[int, str] | None:
    try:
        heartbeat = json.loads(_place(folder, rank).read_text())
        return heartbeat["step"], heartbeat["doing"]
    except (OSError, ValueError, KeyError):
        return None
