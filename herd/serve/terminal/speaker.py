"""Who answers: a model on this machine, or any OpenAI-compatible server by its address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from herd.serve.client import Client
from herd.serve.terminal.talk import Speaker
from herd.types import SamplingParams


def open_speaker(path: str, params: SamplingParams, *, model: str | None = None, **options: Any) -> Speaker:
    """Whoever is at a path or address; PyTorch is loaded only where the model runs here.

    Raises:
        RequestError: a setting is impossible, or the server has no such model.
        CheckpointError: there is no model.
        CapacityError: the server cannot be reached.
    """
    if path.startswith(("http://", "https://")):
        return Client(path, model=model)
    from herd.serve.terminal.local import open_local

    return open_local(Path(path), params, **options)


def documents_beside(path: str) -> Callable[[str], str | None] | None:
    """What tells the sentence that answers a question, from the index beside a demo's model; None where none lies."""
    if path.startswith(("http://", "https://")):
        return None
    from herd.serve.terminal.local import reader_beside

    return reader_beside(Path(path))
