"""Connections: how many are held, for how long without a request, and how much is written down about them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

KERNEL_BACKLOG = 2048
"""Connections that wait to be taken."""
_KEEP_ALIVE_SECONDS = 75  # longer than clients keep connections, so that none is closed while one sends
_MANY_FILES = 65_536  # more are not asked for
_OTHER_FILES = 64  # of models, of logs, of processes that the server starts
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"error": {"message": "Too many connections; try again soon.", "type": "server_error", "param": null, '
    b'"code": "too_many_connections"}}'
)


class Door:
    """The connections that are held; those without a request in progress in the order in which they began to wait.

    There are fewer than the process may have files open. Where one more comes, the one that has waited longest is
    closed for it; where all have requests in progress, the new one is refused.
    """

    def __init__(self, most: int, header_seconds: float, stalled_seconds: float) -> None:
        self.header_seconds, self.stalled_seconds = header_seconds, stalled_seconds
        self.most, self.backlog = _fitting(most)
        self.held: set[Connection] = set()
        self.waiting: dict[Connection, None] = {}

    def enter(self, connection: Connection) -> bool:
        """Take a new connection; False where there is no place."""
        if len(self.held) >= self.most:
            oldest = next(iter(self.waiting), None)
            if oldest is None:
                return False
            self.leave(oldest)
            oldest.transport.abort()
        self.held.add(connection)
        self.waiting[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """It is closed, or about to be."""
        self.held.discard(connection)
        self.waiting.pop(connection, None)


def _fitting(most: int) -> tuple[int, int]:
    """How many connections fit the limit of open files, and how many of them may be taken in one go."""
    if resource is None:
        return most, 128
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = _MANY_FILES if soft == resource.RLIM_INFINITY else soft
    backlog = max(min(files // 16, 128), 1)
    room = files - _OTHER_FILES - 4 * backlog  # what is taken in one turn of the loop is closed in the next but one
    return max(min(most, room), 8), backlog


class Connection(H11Protocol):
    """A connection with deadlines: for a request's head, and for a client to read what it is sent."""

    def __init__(self, *, door: Door, **options: Any) -> None:
        super().__init__(**options)
        self._door = door
        self._deadline: asyncio.TimerHandle | None = None  # for the head of a request
        self._watch: asyncio.TimerHandle | None = None  # that the client reads
        self._unread = 0  # bytes that it had not read at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        if self._door.enter(self):
            self._wait_for_head()
        else:
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went, or was left."""
        super().connection_lost(exc)
        self._door.leave(self)
        self._forget_deadlines()

    def data_received(self, data: bytes) -> None:
        """A part of a request came; the deadline for its head goes on until there is the whole of it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._door.waiting.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None and not self.transport.is_closing():
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have come already."""
        super().on_response_complete()
        if self in self._door.held and self.cycle.response_complete:
            self._door.waiting[self] = None
        if self.transport.get_write_buffer_size():
            self._begin_watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        self._begin_watch()

    def resume_writing(self) -> None:
        """It has read most of what it was sent."""
        super().resume_writing()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(self._door.header_seconds, self.timeout_keep_alive_handler)

    def _begin_watch(self) -> None:
        if self._watch is None:
            self._unread = self.transport.get_write_buffer_size()
            self._watch = self.loop.call_later(self._door.stalled_seconds, self._see_whether_read)

    def _see_whether_read(self) -> None:
        self._watch = None
        unread = self.transport.get_write_buffer_size()
        if unread and unread >= self._unread:
            self.transport.abort()
        elif unread:
            self._begin_watch()

    def _forget_deadlines(self) -> None:
        for timer in (self._deadline, self._watch):
            if timer is not None:
                timer.cancel()


class Sparing(logging.Filter):
    """Lets a few lines of a log pass a second, and counts the others."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._per_second, self._clock = per_second, clock
        self._second, self._passed, self._left_out = 0, 0, 0

    def take(self) -> int | None:
        """None where a line is to be left out, else how many were left out since the last that passed."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._passed = second, 0
        if self._passed >= self._per_second:
            self._left_out += 1
            return None
        self._passed += 1
        left_out, self._left_out = self._left_out, 0
        return left_out

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        left_out = self.take()
        if left_out:
            record.msg, record.args = f"({left_out:,} lines left out before) {record.getMessage()}", ()
        return left_out is not None


def configuration(app: FastAPI, door: Door) -> uvicorn.Config:
    """How uvicorn serves the application.

    h11 refuses two Host headers, which httptools, taken where it is installed, lets through; no WebSocket is spoken.
    """
    config = uvicorn.Config(
        app,
        http=partial(Connection, door=door),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        backlog=door.backlog,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    for name in ("uvicorn.error", "asyncio", "herd.serve"):
        logger = logging.getLogger(name)
        logger.filters = [kept for kept in logger.filters if not isinstance(kept, Sparing)]
        logger.addFilter(Sparing(LINES_PER_SECOND))
    return config


LINES_PER_SECOND = 20
"""Lines of the log about faults, and about requests that were refused; more are counted."""


def let_wait(sockets: list[socket.socket]) -> None:
    """The event loop takes as many connections in one go as its backlog has; more may wait before it."""
    for listener in sockets:
        listener.listen(KERNEL_BACKLOG)
