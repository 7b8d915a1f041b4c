"""A model on this machine that answers; a module of its own, so that a chat with a server loads no PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from herd.infer.engine import Engine
from herd.infer.request import check_params
from herd.knowledge.grounding import index_beside
from herd.knowledge.index import Index
from herd.knowledge.reading import read_out
from herd.knowledge.terms import terms
from herd.types import Conversation, SamplingParams


class Local:
    """A model on this machine that answers one question at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.speaks_chat = engine, engine.speaks_chat

    def stream(self, inputs: str | Conversation, params: SamplingParams) -> Generator[tuple[str, int], None, None]:
        """The pieces of an answer with their numbers of tokens."""
        pieces = self.engine.stream(inputs, params)
        return ((piece.text, len(piece.tokens)) for piece in _closing(pieces))

    def check(self, params: SamplingParams) -> None:
        """Refuse settings that are impossible."""
        check_params(params)


def _closing(pieces: Any) -> Generator[Any, None, None]:
    """The same pieces; leaving early ends the request at once."""
    with contextlib.closing(pieces):
        yield from pieces


def open_local(path: Path, params: SamplingParams, **options: Any) -> Local:
    """The model of a checkpoint or run folder; the settings are checked before it is loaded.

    Raises:
        RequestError: a setting is impossible.
        CheckpointError: there is no model.
    """
    check_params(params)
    return Local(Engine(path, max_sequences=1, **options))


def reader_beside(path: Path) -> Callable[[str], str | None] | None:
    """What reads the answer to a question out of the index beside a model, with its source; None where none lies."""
    place = index_beside(path)
    if place is None:
        return None
    index = Index(place)

    def told(question: str) -> str | None:
        found = read_out(index, question) if terms(question) else None
        return None if found is None else f"{found.text}\n    {found.hit.source}"

    return told
