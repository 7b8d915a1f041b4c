"""The server as a process: its socket, its engines, what it says, and how it stops."""

from __future__ import annotations

import asyncio
import atexit
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from herd.errors import CapacityError, CheckpointError, ConfigError
from herd.infer.engine import Engine
from herd.infer.settings import EngineSettings
from herd.log import say, size
from herd.ops.probe import available_memory
from herd.serve.app import Server
from herd.serve.connections import KERNEL_BACKLOG, Door, configuration, let_wait

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CUT_SECONDS = 2  # for clients to hear that their answers were cut
_SHARE_OF_MEMORY = 0.25  # for keys and values, of what is available, all models together


def open_engines(paths: Mapping[str, Path], settings: EngineSettings, device: str, **options: Any) -> dict[str, Engine]:
    """The models by their names; together they take no more memory for their caches than one would.

    Raises:
        CheckpointError: one is not there, or damaged.
    """
    options |= settings.options() | {"max_sequences": settings.max_sequences, "device": device}
    if options["cache_bytes"] is None and len(paths) > 1:  # pages count only once they are written:
        share = _SHARE_OF_MEMORY / len(paths)  # the second model must not take those of the first for free
    else:
        share = None
    engines = {}
    for name, path in paths.items():
        if share is not None:
            options["cache_bytes"] = int(share * available_memory(torch.device(device)))
        try:
            engines[name] = Engine(path, **options)
        except CheckpointError as error:
            raise CheckpointError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from None
    return engines


def announce(engines: dict[str, Engine], host: str, port: int, *, is_open: bool) -> None:
    place = f"http://{'localhost' if host in (*LOOPBACK, '0.0.0.0', '::') else host}:{port}"
    for name, engine in engines.items():
        kind = "chat" if engine.speaks_chat else "base model, completion only"
        say(f"{name} ({kind}): context {engine.max_context:,} tokens, cache {size(engine.cache_bytes)}")
    say(f"  chat page  {place}/")
    say(f"  API        {place}/v1   (OpenAI-compatible; Ctrl-C stops)")
    if is_open and host not in LOOPBACK:
        say(f"warning: whoever reaches {host}:{port} can use this server; give it a key (key=... or HERD_KEY)")
    sys.stderr.flush()


def serve(app: FastAPI, listener: socket.socket, door: Door, drain_seconds: float) -> None:
    """Serve on a socket that listens, until told to stop."""
    config = configuration(app, door)
    atexit.register(ignore_signals)  # who still presses Ctrl-C while Python takes itself apart would see a trace
    Draining(config, app.state.server, drain_seconds).run(sockets=[listener])


def settle() -> None:
    """The collector leaves alone what stays for ever, and so comes round to what requests leave behind."""
    gc.collect()
    gc.freeze()


def bound(host: str, port: int) -> socket.socket:
    """The socket, bound before the model is loaded, so that a port in use is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise ConfigError(f"host: {host} is not an address of this machine") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _unusable(host, port, error) from None
    return listener


def begin_to_listen(listener: socket.socket, host: str, port: int) -> None:
    """Two servers may both bind a port that nobody listens on yet; the one that loads its model faster has it."""
    try:
        listener.listen(KERNEL_BACKLOG)
    except OSError as error:
        raise _unusable(host, port, error) from None


def _unusable(host: str, port: int, error: OSError) -> CapacityError:
    return CapacityError(f"port {port} on {host} cannot be used ({error.strerror}); choose another port=")


class Draining(uvicorn.Server):
    """Told to stop, it takes no more requests, lets answers in progress end for a while, then ends them itself.

    Whoever was cut has two seconds to read so; then the connections are closed. Another Ctrl-C goes on to the next of
    these steps at once. uvicorn's own ways (cancelled tasks, signals sent again) would leave traces on the terminal.
    """

    def __init__(self, config: uvicorn.Config, server: Server, drain_seconds: float) -> None:
        super().__init__(config)
        self._server, self._drain_seconds = server, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_cut = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        with _hanging_up(self.handle_exit):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door."""
        await super().startup(sockets)
        let_wait(sockets or [])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C, SIGTERM, or the terminal was closed; the second Ctrl-C ends answers, the third connections."""
        self._server.stop_taking()
        if self.should_exit and sig == signal.SIGINT and self._loop is not None:
            self._loop.call_soon_threadsafe(self._close if self._is_cut else self._cut)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, then wait."""
        self._server.stop_taking()
        timer = asyncio.get_running_loop().call_later(self._drain_seconds, self._cut)
        await super().shutdown(sockets)
        timer.cancel()

    def _cut(self) -> None:
        if not self._is_cut:
            self._is_cut = True
            self._server.cut()
            asyncio.get_running_loop().call_later(_CUT_SECONDS, self._close)

    def _close(self) -> None:
        """Close what is left: clients who do not read, or who never sent the whole of a request."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def ignore_signals() -> None:
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, signal.SIG_IGN)


@contextmanager
def _hanging_up(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Stop in order when the terminal is closed, too; not where that is to be ignored (nohup)."""
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    here = threading.current_thread() is threading.main_thread()
    if hang_up is None or not here or signal.getsignal(hang_up) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(hang_up, handle)
    try:
        yield
    finally:
        signal.signal(hang_up, before)
