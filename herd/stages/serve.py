"""Serve a model: a chat page, and an OpenAI-compatible API for the clients you have."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Literal

import uvicorn

from herd.config import settings
from herd.errors import CapacityError, ConfigError
from herd.infer.engine import Engine
from herd.log import say, size
from herd.serve.app import Limits, create_app

_GRACE_SECONDS = 3  # for answers in progress when the server is told to stop


@settings
class ServeSettings:
    """Serve one model until it is stopped with Ctrl-C."""

    path: Path
    """Checkpoint or run folder."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in (give a key then)."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    name: str | None = None
    """Model id for clients; the folder's name when not given."""
    key: str | None = None
    """Key that clients must send; none when not given."""
    device: str = "cpu"
    """Where the model runs: cpu or cuda."""
    quantize: Literal["int8"] | None = None
    """Round the weights on loading; see `herd quantize` for a smaller copy on disk."""
    cache_gb: float | None = None
    """Memory for keys and values in GB; a quarter of what is available when not given."""
    max_sequences: int = 64
    """Answers that grow at the same time."""
    max_waiting: int = 256
    """Answers that may wait; more are refused with 429."""
    max_tokens: int = 2048
    """Longest answer where a request does not say, in tokens."""

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise ValueError("port must be from 0 to 65535")
        if min(self.max_sequences, self.max_waiting, self.max_tokens) < 1:
            raise ValueError("max_sequences, max_waiting and max_tokens must be at least 1")
        if self.cache_gb is not None and self.cache_gb <= 0:
            raise ValueError("cache_gb must be positive")


def run(settings: ServeSettings) -> None:
    """Open the model, listen, and serve until interrupted."""
    listener = _listen(settings.host, settings.port)
    engine = Engine(
        settings.path,
        device=settings.device,
        quantize=settings.quantize,
        cache_bytes=None if settings.cache_gb is None else int(settings.cache_gb * 1e9),
        max_sequences=settings.max_sequences,
    )
    name = settings.name or settings.path.resolve().name
    limits = Limits(max_waiting=settings.max_waiting, max_tokens=settings.max_tokens)
    app = create_app(engine, name=name, key=settings.key, limits=limits)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE_SECONDS)
    _announce(engine, name, settings.host, listener.getsockname()[1])
    with suppress(KeyboardInterrupt):  # told to stop, and stopped
        uvicorn.Server(config).run(sockets=[listener])


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
        raise CapacityError(f"port {port} on {host} cannot be used ({error.strerror}); choose another port=") from None
    return listener


def _announce(engine: Engine, name: str, host: str, port: int) -> None:
    place = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::', '::1') else host}:{port}"
    kind = "chat" if engine.speaks_chat else "base model, completion only"
    say(f"{name} ({kind}): context {engine.max_context:,} tokens, cache {size(engine.cache_bytes)}")
    say(f"  chat page  {place}/")
    say(f"  API        {place}/v1   (OpenAI-compatible; Ctrl-C stops)")
