"""A tiny model whose every round says what a script says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from herd.infer.engine import Engine
from herd.serve.app import create_app
from tests.serve.conftest import chat_engine, listening


class Script:
    """The rounds still to be said (the last one stays), and the prompts that came."""

    def __init__(self, engine: Engine, rounds: tuple[str, ...]) -> None:
        self.rounds, self.prompts = list(rounds), []
        self._tokens: list[list[int]] = []
        self._engine, self._make, self._lock = engine, engine.request, threading.Lock()
        engine.request = self._request

    def _request(self, prompt, params, *more, **options):
        with self._lock:
            words = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
            self.prompts.append(self._engine.tokenizer.decode(prompt))
            self._tokens.append(list(prompt))
        return self._make(prompt, replace(params, choice=(words,)), *more, **options)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of one of the prompts."""
        return self._tokens[self.prompts.index(prompt)]


@contextmanager
def scripted(*rounds: str, **options) -> Iterator[tuple[str, Script]]:
    """The address of a server that says these rounds, and the script."""
    engine = chat_engine(max_position_embeddings=8192)
    script = Script(engine, rounds)
    with listening(create_app(engine, name="tiny", **options)) as url:
        yield url, script
    assert not engine.has_work
