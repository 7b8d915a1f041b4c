"""A server over a tiny random model, reached over a real socket."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from herd.formats.checkpoint import save
from herd.infer.engine import Engine
from herd.serve.app import create_app
from herd.serve.limits import Limits
from tests.infer.models import small_tokenizer, tiny_model


@dataclass(frozen=True)
class Running:
    """A server that listens, and the engine behind it."""

    url: str
    engine: Engine

    def wait_until_idle(self, seconds: float = 5.0) -> None:
        """Until no answer runs or waits and every block is free."""
        until = time.monotonic() + seconds
        while self.engine.has_work and time.monotonic() < until:
            time.sleep(0.01)
        allocator = self.engine.loop.allocator
        assert not self.engine.has_work
        assert allocator.num_free == allocator.num_blocks


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Run an application on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def chat_engine(**options) -> Engine:
    """A model whose configuration says that it was trained on conversations."""
    tokenizer = small_tokenizer()
    return Engine.of(tiny_model(eos_token_id=list(tokenizer.stop_ids), **options), tokenizer, max_sequences=16)


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    engine = chat_engine(max_position_embeddings=2048)
    with listening(create_app(engine, name="tiny", limits=Limits(max_waiting=40, max_body_bytes=100_000))) as url:
        yield Running(url, engine)


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A base model and one that speaks chat."""
    root, tokenizer = tmp_path_factory.mktemp("models"), small_tokenizer()
    save(tiny_model(), root / "base", tokenizer)
    save(tiny_model(eos_token_id=list(tokenizer.stop_ids)), root / "chat" / "checkpoint", tokenizer)
    return root


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """A base model whose answers take longer than any test."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    model, tokenizer = tiny_model(max_position_embeddings=32_768, tie_word_embeddings=False), small_tokenizer()
    with torch.no_grad():  # every hidden state is large in one channel, which speaks against the tokens that end a text
        model.model.embed_tokens.weight[:, 0] = 50
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[sorted(tokenizer.stop_ids), 0] = -10
    save(model, folder, tokenizer)
    return folder


def heed_signals() -> None:
    """As from a terminal, also where the tests run in the background (`nohup`, `&`), which signals are ignored in."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
