"""The process that starts boxes: small and of one thread, so that a fork is quick and holds no lock of the house.

It reads one job after another from its socket. For each it forks an outer process, which leaves the namespaces, and
that one forks the supervisor: process 1 of the box, which answers on the same socket. When the house goes, it ends
whatever runs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import Any

from herd.sandbox import box, cgroup, frames, kernel, processes

_GRACE_SECONDS = 10.0  # for the supervisor to end, collect and answer once its own clock has run out


def main() -> None:
    """Serve jobs until the house closes its end of the socket on file descriptor 0.

    The house's end is how its death is learnt of: a signal would come as soon as the thread that opened us ends.
    """
    kernel.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the house's to handle; it closes the socket
    channel = socket.socket(fileno=os.dup(0))
    os.set_inheritable(channel.fileno(), False)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while job := frames.receive(channel):
        group = cgroup.Group(job["cgroup"], job["limits"]) if job["cgroup"] else None
        try:
            fault = _one(channel, job, group)
        finally:
            if group is not None:
                group.close()
        if fault:
            with contextlib.suppress(BrokenPipeError):  # the house has gone, and that is what ended it
                frames.send(channel, {"fault": fault})


def _one(channel: socket.socket, job: dict[str, Any], group: cgroup.Group | None) -> str | None:
    """Run one job; what went wrong if the supervisor could not answer by itself."""
    reads, writes = os.pipe()  # closed by exec: only a fault in setting up is written there
    child = os.fork()
    if child == 0:
        os.close(reads)
        _outer(channel, job, writes, group.handles if group else None)
    os.close(writes)
    patience = job["limits"]["wall_seconds"] * len(job["steps"]) + _GRACE_SECONDS
    deadline = None if job["session"] else time.monotonic() + patience
    house = select.poll()
    house.register(channel, 0)  # hanging up is always told
    status = None
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = code
        elif house.poll(0) or (deadline is not None and time.monotonic() > deadline):
            os.kill(child, signal.SIGKILL)  # takes the supervisor with it, and that the whole box
            status = os.waitpid(child, 0)[1]
        else:
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
    processes.end_all(child, status)  # at the levels without namespaces: what the supervisor's death has orphaned
    with os.fdopen(reads, "rb") as said:
        fault = said.read().decode(errors="replace")
    if status and group is not None and cgroup.killed_for_memory(group.handles[1]):
        return "the kernel ended it for want of memory"
    return None if status == 0 else fault or f"the supervisor of the box ended with status {status}"


def _outer(channel: socket.socket, job: dict[str, Any], complaints: int, group: tuple[int, int] | None) -> None:
    status = 1
    try:
        kernel.die_with_parent()
        box.open_box(channel, job, group)
        status = 0
    except BaseException as error:  # said to the house, which raises it there
        os.write(complaints, f"{type(error).__name__}: {error}"[:2000].encode())
    finally:
        os._exit(status)
