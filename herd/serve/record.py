"""One request from its first byte to its last: who asked for what, and what it took."""

from __future__ import annotations

import dataclasses
import time
import uuid
from dataclasses import dataclass
from typing import Any


@dataclass
class RequestRecord:
    """One request: who asked for what, and what it took."""

    path: str
    id: str = dataclasses.field(default_factory=lambda: "req-" + uuid.uuid4().hex)
    began: float = dataclasses.field(default_factory=time.monotonic)
    owner: str | None = None
    model: str | None = None
    status: int = 0
    error: str | None = None
    field: str | None = None  # that a refusal is about
    unheeded: list[str] = dataclasses.field(default_factory=list)  # fields that were accepted and cannot be honoured
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_seconds: float | None = None  # until the first piece of an answer
    seconds: float = 0.0
    finish: str | None = None
    asked: Any = None  # the request's words and the answers', only where the log keeps them
    answered: list[str] | None = None

    def first_piece(self) -> None:
        """An answer has begun."""
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self.began
