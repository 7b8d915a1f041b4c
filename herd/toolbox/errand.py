"""What the calls of one answer share, and how a tool says that it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from herd.knowledge.index import Hit

MAX_FILE_BYTES = 16_000_000
"""Of all files together that the calls of one answer hand to whoever asked."""
MAX_FILES = 20


class Failed(Exception):
    """A tool cannot do what it was asked to; the model is told these words."""


class Closes(Protocol):
    """What is kept open between calls."""

    def close(self) -> None:
        """End it."""
        ...


T = TypeVar("T", bound=Closes)


class Errand:
    """What lasts from call to call of one answer: sessions that stay open, passages that were found, files made.

    `given` are files that came with the conversation, by their names.
    """

    def __init__(self, given: Mapping[str, bytes] | None = None) -> None:
        self.given = dict(given or {})
        self.passages: list[Hit] = []
        self.files: dict[str, bytes] = {}
        self._open: dict[object, Closes] = {}
        self._lock, self._is_over = threading.Lock(), False

    def kept(self, whose: object, make: Callable[[], T]) -> T:
        """What a tool keeps open, made at its first call.

        Raises:
            Failed: the answer is over.
        """
        with self._lock:
            if self._is_over:
                raise Failed("the answer that asked is over")
            if whose not in self._open:
                self._open[whose] = make()
            return self._open[whose]  # type: ignore[return-value]  # by its owner alone

    def forget(self, whose: object) -> None:
        """Close what a tool keeps; its next call begins anew."""
        with self._lock:
            if found := self._open.pop(whose, None):
                found.close()

    def found(self, hits: list[Hit]) -> list[int]:
        """Note passages; their numbers from 1, as the answer's citations count them."""
        with self._lock:
            for hit in hits:
                if not any(known.text == hit.text and known.file == hit.file for known in self.passages):
                    self.passages.append(hit)
            keys = [(hit.file, hit.text) for hit in self.passages]
            return [keys.index((hit.file, hit.text)) + 1 for hit in hits]

    def made(self, files: Mapping[str, bytes]) -> list[str]:
        """Note files for whoever asked; the names of those for which there is no room."""
        left = []
        for name, data in files.items():
            others = sum(len(known) for other, known in self.files.items() if other != name)
            if others + len(data) > MAX_FILE_BYTES or len(self.files.keys() - {name}) >= MAX_FILES:
                left.append(name)
            else:
                self.files[name] = data
        return left

    def close(self) -> None:
        """The answer is over: end everything that it kept open."""
        with self._lock:
            self._is_over = True
            for one in self._open.values():
                one.close()
            self._open.clear()


def function(name: str, description: str, **parameters: str) -> dict[str, Any]:
    """A function of texts as OpenAI describes it: every parameter by what it means."""
    properties = {key: {"type": "string", "description": said} for key, said in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"name": name, "description": description, "parameters": schema}


def text_argument(arguments: Mapping[str, Any], name: str) -> str:
    """A text among a call's arguments.

    Raises:
        Failed: there is none.
    """
    value = arguments.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise Failed(f"needs `{name}`, a text; got {sorted(arguments) or 'nothing'}")
    return value
