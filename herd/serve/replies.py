"""What is answered, whatever the dialect: answers put together from pieces, and what a dialect makes of them."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from herd.infer.request import Piece
from herd.serve.tools import CallReader
from herd.serve.turn import Turn
from herd.tokenizer.specials import PYTHON_TAG
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import TokenLogprob, ToolCall

Event = dict[str, Any]


class Gathered:
    """One answer put together from its pieces."""

    def __init__(self) -> None:
        self.text, self.num_tokens = "", 0
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob | Unscored] = []
        self.finish_reason: str | None = None

    def add(self, piece: Piece, text: str, calls: Sequence[ToolCall] = ()) -> None:
        """Append a piece, with the text and the calls that came of it."""
        self.text += text
        self.calls += calls
        self.num_tokens += len(piece.tokens)
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason

    def prepend(self, text: str, scored: Iterable[tuple[int, TokenLogprob | None]]) -> None:
        """Put a prompt first, with the log-probabilities of its tokens as far as they are known."""
        self.text = text + self.text
        self.logprobs = [found or Unscored(token) for token, found in scored] + self.logprobs


class Unscored(NamedTuple):
    """A prompt's first token: nothing comes before it, so it has no probability."""

    token: int
    logprob: None = None
    top: tuple[()] = ()


class Dialect(Protocol):
    """The body of a request, in any dialect."""

    def turn(self) -> Turn:
        """What is asked for.

        Raises:
            RequestError: it cannot be brought into that form.
        """
        ...

    def reply(self, tokenizer: Tokenizer, model: str, turn: Turn, prompts: Sequence[list[int]]) -> Reply:
        """How it is answered."""
        ...

    def field_of(self, message: str) -> str:
        """The field that a refusal of the engine is about."""
        ...


class Reply(ABC):
    """The shapes of one response: a dialect says how a whole answer looks, and how the pieces of one."""

    id_prefix: str

    def __init__(self, tokenizer: Tokenizer, model: str, turn: Turn, prompts: Sequence[list[int]] = ()) -> None:
        self.tokenizer, self.model, self.turn = tokenizer, model, turn
        self.id, self.created = self.id_prefix + uuid.uuid4().hex, int(time.time())
        self.echoes = [tokenizer.decode(prompt, skip_special=True) for prompt in prompts] if turn.echo else []
        self._readers: dict[int, CallReader] = {}
        self._tag = tokenizer.special.get(PYTHON_TAG)

    @abstractmethod
    def whole(self, answers: Sequence[Gathered], prompt_tokens: int) -> dict[str, Any]:
        """The response that is not streamed."""

    @abstractmethod
    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """What comes before an answer to the prompt of this number."""

    @abstractmethod
    def chunks(self, index: int, piece: Piece, answer: Gathered) -> Iterator[Event]:
        """Add a piece to its answer; the events that it makes."""

    @abstractmethod
    def closing(self, answers: Sequence[Gathered], prompt_tokens: int) -> Iterator[Event]:
        """What comes after all answers."""

    def written(self, event: Event) -> str:
        """An event as it goes over the wire."""
        return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def end(self) -> str:
        """What follows the last event of a stream that ended well."""
        return "data: [DONE]\n\n"

    def take(self, index: int, piece: Piece, answer: Gathered) -> tuple[str, list[ToolCall]]:
        """Add a piece to its answer; the text and the calls that came of it."""
        text, calls = piece.text, list[ToolCall]()
        if self.turn.tools:
            reader = self._reader(index)
            text = reader.push(piece.text, tag=self._tag in piece.tokens)
            if piece.finish_reason:
                rest, calls = reader.finish()
                text += rest
        answer.add(piece, text, calls)
        return text, calls

    def _reader(self, index: int) -> CallReader:
        if index not in self._readers:
            names = [tool["function"]["name"] for tool in self.turn.tools]
            self._readers[index] = CallReader(names, one_call=self.turn.one_call)
        return self._readers[index]

    def name_of(self, token: int) -> str:
        """A token as text; one that is no whole character as `bytes:\\xf0\\x9f`, as OpenAI writes it."""
        data = self.tokenizer.token_bytes(token, b"")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
