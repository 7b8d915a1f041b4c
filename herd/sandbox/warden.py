"""The process that starts boxes: small and single-threaded, so that forks are fast and inherit no locks.

It reads jobs from its socket one by one. For each it forks an outer process, which enters new namespaces and forks the
supervisor: process 1 of the box, which answers on the same socket. When the client ends, it ends all boxes.
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

_GRACE_SECONDS = 10.0  # for the supervisor to end the program, collect files and answer after the time limit


def main() -> None:
    """Serve jobs until the client closes its end of the socket on file descriptor 0.

    The client's death is detected by the socket: a parent-death signal would come when the thread that started this
    process ends.
    """
    kernel.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client handles Ctrl-C, and closes the socket
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
            with contextlib.suppress(BrokenPipeError):  # the client has ended, which is why it failed
                frames.send(channel, {"fault": fault})


def _one(channel: socket.socket, job: dict[str, Any], group: cgroup.Group | None) -> str | None:
    """Run one job; returns the error if the supervisor could not answer by itself."""
    reads, writes = os.pipe()  # for errors while setting up the box
    child = os.fork()
    if child == 0:
        os.close(reads)
        _outer(channel, job, writes, group.handles if group else None)
    os.close(writes)
    patience = job["limits"]["wall_seconds"] * len(job["steps"]) + _GRACE_SECONDS
    deadline = None if job["session"] else time.monotonic() + patience
    client = select.poll()
    client.register(channel, 0)  # a hang-up is always reported
    status = None
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = code
        elif client.poll(0) or (deadline is not None and time.monotonic() > deadline):
            os.kill(child, signal.SIGKILL)  # kills the supervisor too, and so the whole box
            status = os.waitpid(child, 0)[1]
        else:
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
    processes.end_all(child, status)  # at levels without namespaces: orphans of the supervisor
    with os.fdopen(reads, "rb") as said:
        fault = said.read().decode(errors="replace")
    if status and group is not None and cgroup.killed_for_memory(group.handles[1]):
        return "the kernel killed it because it ran out of memory"
    return None if status == 0 else fault or f"the supervisor of the box ended with status {status}"


def _outer(channel: socket.socket, job: dict[str, Any], complaints: int, group: tuple[int, int] | None) -> None:
    status = 1
    try:
        kernel.die_with_parent()
        box.open_box(channel, job, group)
        status = 0
    except BaseException as error:  # reported to the client, which raises it
        os.write(complaints, f"{type(error).__name__}: {error}"[:2000].encode())
    finally:
        os._exit(status)
