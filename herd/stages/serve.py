"""Serve models: a chat page, and an OpenAI-compatible API for the clients you have.

Several paths serve several models at once: `herd serve runs/a runs/b`. It listens on this machine only unless `host`
says otherwise. Ctrl-C stops: answers in progress may end first, a second Ctrl-C cuts them.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
import uvicorn
import yaml

from herd.config import settings
from herd.endpoint import fits_header
from herd.errors import CapacityError, CheckpointError, ConfigError, DataError
from herd.infer.engine import Engine
from herd.infer.settings import EngineSettings
from herd.log import say, size
from herd.ops.probe import available_memory
from herd.serve.app import Server, create_app
from herd.serve.journal import Form, Journal
from herd.serve.limits import Limits

KEY_VARIABLE = "HERD_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_KEEP_ALIVE_SECONDS = 75  # longer than clients keep connections, so that none is closed while one sends
_BACKLOG = 2048  # connections that wait to be taken
_CUT_SECONDS = 2  # for clients to hear that their answers were cut
_SHARE_OF_MEMORY = 0.25  # for keys and values, of what is available, all models together


@settings
class ServeLimits:
    """What the server takes on."""

    max_waiting: int = 256
    """Answers that may wait, of each model; more are refused with 429."""
    max_tokens: int = 2048
    """Longest answer where a request does not say, in tokens."""
    max_body_mb: float = 10.0
    """Largest request body in MB; larger ones are refused with 413."""
    timeout_seconds: float = 600.0
    """For a whole answer in seconds; then it is cancelled."""
    body_seconds: float = 30.0
    """For a request's body to arrive, in seconds."""
    drain_seconds: float = 10.0
    """For answers in progress when the server is told to stop, in seconds."""
    requests_per_minute: int | None = None
    """Requests a key may send in a minute; no limit when not given."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers a key may use in a minute; no limit when not given."""

    def __post_init__(self):
        for name in ("max_waiting", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("max_body_mb", "timeout_seconds", "body_seconds", "drain_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")

    def for_app(self) -> Limits:
        """The same in the units of the application."""
        return Limits(
            max_waiting=self.max_waiting,
            max_body_bytes=int(self.max_body_mb * 1e6),
            max_tokens=self.max_tokens,
            timeout_seconds=self.timeout_seconds,
            body_seconds=self.body_seconds,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )


@settings
class ServeLog:
    """One line for every request, on standard error."""

    form: Form = "text"
    """`text` for people, `json` for programs, `off` for no lines."""
    with_text: bool = False
    """Also what was asked and answered (form json only): it is not kept otherwise."""

    def __post_init__(self):
        if self.with_text and self.form != "json":
            raise ValueError("with_text needs form json")


@settings
class ServeSettings:
    """Serve one model, or several, until stopped with Ctrl-C."""

    path: list[Path]
    """Checkpoints or run folders, one or several."""
    name: list[str] | None = None
    """Model ids for clients, in the order of the paths; the folders' names when not given."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in (give a key then)."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    key: str | None = None
    """Key that clients must send; the variable HERD_KEY when not given (others here can read command lines)."""
    keys: Path | None = None
    """YAML file of `name: key`, for several clients; the names go into the log."""
    device: str = "cpu"
    """Where the models run: cpu or cuda."""
    quantize: Literal["int8", "int4", "fp8"] | None = None
    """Round the weights on loading; see `herd quantize` for a smaller copy on disk."""
    adapters: dict[str, Path] | None = None
    """LoRA adapters (PEFT folders) of the first model, by the model ids that clients give."""
    engine: EngineSettings = EngineSettings()
    """How each model is run."""
    limits: ServeLimits = ServeLimits()
    """What the server takes on."""
    log: ServeLog = ServeLog()
    """What it writes down."""

    def __post_init__(self):
        if not self.path:
            raise ValueError("path must name at least one model")
        if self.name and len(self.name) != len(self.path):
            raise ValueError(f"{len(self.name)} names for {len(self.path)} paths; give each its own, or none")
        for name in (*(self.name or ()), *(self.adapters or ())):
            if not name.strip() or not name.isprintable():
                raise ValueError(f"{name!r} is no name that clients could give; take letters and digits")
        if not 0 <= self.port <= 65535:
            raise ValueError("port must be from 0 to 65535")


def run(settings: ServeSettings) -> None:
    """Open the models, listen, and serve until interrupted."""
    names = _names(settings)
    keys = read_keys(settings.keys) if settings.keys else {}
    key = settings.key or os.environ.get(KEY_VARIABLE) or None
    _check_keys({KEY_VARIABLE if settings.key is None else "key": key} if key else {})
    _check_keys(keys)
    listener = _listen(settings.host, settings.port)
    engines = {name: _open(path, settings) for name, path in zip(names, settings.path, strict=True)}
    for name, folder in (settings.adapters or {}).items():
        engines[names[0]].add_adapter(name, folder)
    is_open = not (key or keys)
    app = create_app(
        engines,
        key=key,
        keys=keys,
        limits=settings.limits.for_app(),
        journal=Journal(settings.log.form, with_text=settings.log.with_text),
        hosts=_LOOPBACK if is_open and settings.host in _LOOPBACK else None,
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    gc.collect()
    gc.freeze()  # the collector leaves alone what stays for ever, and so comes round to what requests leave behind
    _begin_to_listen(listener, settings)  # who comes before the first turn of the loop waits, and is not refused
    _announce(engines, settings.host, listener.getsockname()[1], is_open=is_open)
    atexit.register(_ignore_signals)  # who still presses Ctrl-C while Python takes itself apart would see a trace
    Draining(config, app.state.server, settings.limits.drain_seconds).run(sockets=[listener])


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


def _ignore_signals() -> None:
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


def read_keys(path: Path) -> dict[str, str]:
    """The keys by their owners' names.

    Raises:
        DataError: the file is not there, or not a YAML mapping of names to keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"keys: {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"keys: {path} is not YAML: {' '.join(str(error).split())}") from None
    is_right = isinstance(values, dict) and all(isinstance(w, str) and w for pair in values.items() for w in pair)
    if not is_right or not values:
        raise DataError(f"keys: {path} must hold lines of `name: key`, both of them text")
    if len(set(values.values())) < len(values):
        raise DataError(f"keys: {path} gives one key to two names")
    return values


def _check_keys(keys: Mapping[str, str]) -> None:
    """Refuse keys that no client could send in a header."""
    for name, key in keys.items():
        if not fits_header(key):
            raise ConfigError(f"the key of {name} begins or ends with a space, or holds a line break: no header may")


def _names(settings: ServeSettings) -> list[str]:
    names = settings.name or [path.resolve().name for path in settings.path]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two models are called {twice[0]}; tell them apart with name=[...]")
    return names


def _open(path: Path, settings: ServeSettings) -> Engine:
    options = settings.engine.options()
    if options["cache_bytes"] is None and len(settings.path) > 1:  # pages count only once they are written:
        share = _SHARE_OF_MEMORY / len(settings.path)  # the second model must not take those of the first for free
        options["cache_bytes"] = int(share * available_memory(torch.device(settings.device)))
    try:
        return Engine(
            path,
            device=settings.device,
            quantize=settings.quantize,
            max_sequences=settings.engine.max_sequences,
            **options,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from None


def _listen(host: str, port: int) -> socket.socket:
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


def _begin_to_listen(listener: socket.socket, settings: ServeSettings) -> None:
    """Two servers may both bind a port that nobody listens on yet; the one that loads its model faster has it."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _unusable(settings.host, settings.port, error) from None


def _unusable(host: str, port: int, error: OSError) -> CapacityError:
    return CapacityError(f"port {port} on {host} cannot be used ({error.strerror}); choose another port=")


def _announce(engines: dict[str, Engine], host: str, port: int, *, is_open: bool) -> None:
    place = f"http://{'localhost' if host in (*_LOOPBACK, '0.0.0.0', '::') else host}:{port}"
    for name, engine in engines.items():
        kind = "chat" if engine.speaks_chat else "base model, completion only"
        say(f"{name} ({kind}): context {engine.max_context:,} tokens, cache {size(engine.cache_bytes)}")
    say(f"  chat page  {place}/")
    say(f"  API        {place}/v1   (OpenAI-compatible; Ctrl-C stops)")
    if is_open and host not in _LOOPBACK:
        say(f"warning: whoever reaches {host}:{port} can use this server; give it a key (key=... or {KEY_VARIABLE})")
    sys.stderr.flush()
