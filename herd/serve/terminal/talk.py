"""A conversation with whoever answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Protocol

from herd.errors import RequestError
from herd.types import Conversation, Message, SamplingParams


class Speaker(Protocol):
    """Whoever answers: a model on this machine, or a server."""

    speaks_chat: bool

    def stream(self, inputs: str | Conversation, params: SamplingParams) -> Generator[tuple[str, int], None, None]:
        """The pieces of an answer with their numbers of tokens."""
        ...

    def check(self, params: SamplingParams) -> None:
        """Refuse settings that are impossible, where that is known before something is asked."""
        ...


@dataclass
class Talk:
    """A conversation with one model, or single completions where it is a base model."""

    speaker: Speaker
    params: SamplingParams
    system: str | None = None
    messages: Conversation = field(default_factory=list)
    beside: Callable[[str], str | None] | None = None  # what documents say on a question, where they say anything

    def answer(self, text: str) -> Generator[tuple[str, int], None, None]:
        """The pieces of the answer. What was answered, even in part, becomes part of the conversation."""
        said, parts = Message(role="user", content=text), []
        stream = self.speaker.stream(self._input(said, text), self.params)
        try:
            for piece, count in stream:
                parts.append(piece)
                yield piece, count
        finally:
            stream.close()
            if self.speaker.speaks_chat and parts:
                self.messages += [said, Message(role="assistant", content="".join(parts))]

    def _input(self, said: Message, text: str) -> str | Conversation:
        if not self.speaker.speaks_chat:
            return text
        before = [Message(role="system", content=self.system)] if self.system else []
        return [*before, *self.messages, said]


def check_text(text: str) -> None:
    """Refuse what is no text, such as bytes of another encoding.

    Raises:
        RequestError: it is none.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        kind = getattr(sys.stdin, "encoding", None) or "UTF-8"
        raise RequestError(f"this is no {kind} text; convert it first (iconv -f latin1 -t utf-8)") from None


def unescaped(text: str) -> str:
    """A text for the model that begins with a slash is written with two."""
    return text[1:] if text.startswith("//") else text
