"""The terminal chat's way to any OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import Any

from herd.endpoint import Endpoint, Patience, key_of
from herd.errors import RequestError
from herd.types import Conversation, SamplingParams

_PATIENCE = Patience(seconds=24 * 3600, silence_seconds=300, tries=1)  # somebody waits, and can ask again
_KEY_VARIABLES = ("HERD_KEY", "OPENAI_API_KEY")
_ALWAYS_SENT = ("temperature", "top_p", "max_tokens")


class Client:
    """Talks to one model of a server.

    `url` is the server's address, with or without `/v1`. The model is the first one it lists unless it is named. The
    key comes from HERD_KEY or OPENAI_API_KEY where it is not given.

    Raises:
        CapacityError: the server cannot be reached, or is none of this kind.
        RequestError: it refuses, or has no such model.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None) -> None:
        url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._endpoint = Endpoint(url, key=key or key_of(*_KEY_VARIABLES), patience=_PATIENCE)
        listed = self._endpoint.models()
        found = next((entry for entry in listed if model in (None, entry["id"])), None)
        if found is None:
            there = ", ".join(entry["id"] for entry in listed) or "none"
            raise RequestError(f"{url} has no model {model!r}; there is: {there}")
        self.model, self.speaks_chat = found["id"], bool(found.get("chat", True))

    def stream(self, inputs: str | Conversation, params: SamplingParams) -> Generator[tuple[str, int], None, None]:
        """The pieces of an answer with their numbers of tokens (one each, as far as a server tells).

        Raises:
            UserError: the server refuses, in its own words, or goes away.
        """
        for piece in self._endpoint.pieces(inputs, model=self.model, **_fields(params)):
            if piece.text:
                yield piece.text, 1

    def check(self, params: SamplingParams) -> None:
        """Nothing: the server says what it refuses."""


def _fields(params: SamplingParams) -> dict[str, Any]:
    """The settings that differ from nothing; those outside OpenAI's API only where they are used."""
    neutral = asdict(SamplingParams())
    return {name: value for name, value in asdict(params).items() if value != neutral[name] or name in _ALWAYS_SENT}
