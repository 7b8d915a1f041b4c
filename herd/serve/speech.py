"""One answer as it grows: its pieces sorted into text and calls, and passed through the guards' filters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from herd.infer.request import Piece
from herd.knowledge.citations import cite
from herd.knowledge.index import Hit
from herd.serve.thoughts import ThoughtReader
from herd.serve.tools import Begun, Call, CallReader, Cited, Ended, Grown, Part, Ran, Running, Thought, Use, Words
from herd.serve.turn import CallFilter, Filter, Refused
from herd.types import TokenLogprob


class Unscored(NamedTuple):
    """A prompt's first token: nothing comes before it, so it has no probability."""

    token: int
    logprob: None = None
    top: tuple[()] = ()


class Speech:
    """One answer put together from its pieces.

    `text` and `calls` are what the client is told; `own_calls` are calls of the server's own tools (named in `own`),
    which end a round of the turn and not the turn. `finish_reason` is `stop`, `length`, `tool_calls`,
    `content_filter` or `cancelled`; None while it grows.
    """

    def __init__(
        self,
        reader: CallReader | None = None,
        filters: Sequence[Filter] = (),
        *,
        tags: Collection[int] = (),
        own: Collection[str] = (),
        thoughts: ThoughtReader | None = None,
        judged_thoughts: Sequence[Filter] = (),
    ) -> None:
        self.text, self.thought, self.num_tokens = "", "", 0
        self.calls: list[Call] = []
        self.uses: list[Use] = []  # of the server's own tools
        self.order: list[str | Call | Use] = []  # texts, calls and uses as they followed one another
        self.logprobs: list[TokenLogprob | Unscored] = []
        self.finish_reason: str | None = None
        self.stop: str | None = None  # the stop string that ended it
        self.refusal: str | None = None  # a guard's words
        self.verdict: Mapping[str, Any] | None = None  # and what it found
        self.cited: Cited | None = None
        self.votes: dict[str, int] | None = None  # where it was chosen among several
        self.own_calls: list[Call] = []
        self.round_text = ""  # what was said since the last round
        self._reader, self._filters = reader, filters
        self._thoughts, self._judged = thoughts, judged_thoughts
        self._tags, self._own = frozenset(tags), frozenset(own)

    def take(self, piece: Piece) -> list[Part]:
        """Add a piece; what the client is to be told of it."""
        if self.finish_reason is not None:  # a guard has ended it
            return []
        self.num_tokens += len(piece.tokens)
        self.logprobs += piece.logprobs
        self.stop = piece.stop
        text, thought = piece.text, list[Part]()
        if self._thoughts is not None:
            text, thought = self._without_thought(text, is_last=bool(piece.finish_reason))
            if self.finish_reason is not None:
                return thought
        parts: list[Part] = [Words(text)] if text else []
        if self._reader is not None:
            tag = not self._tags.isdisjoint(piece.tokens)
            parts = self._reader.push(text, tag=tag)
            if piece.finish_reason:
                parts += self._reader.finish(cut=piece.finish_reason == "length")
        self.own_calls += [part.call for part in parts if isinstance(part, Begun) and part.call.name in self._own]
        told = thought + self._passed([part for part in parts if not self._is_own(part)])
        if piece.finish_reason and not self.finish_reason:
            self._end(piece.finish_reason, told)
        return told

    @property
    def is_thinking(self) -> bool:
        """It has begun a thought and not ended it."""
        return self._thoughts is not None and self._thoughts.state == "thought"

    def _without_thought(self, text: str, *, is_last: bool) -> tuple[str, list[Part]]:
        """The answer's part of a piece of text, and what is told of the thought's."""
        assert self._thoughts is not None
        thought, text = self._thoughts.push(text)
        if is_last:
            more, rest = self._thoughts.finish()
            thought, text = thought + more, text + rest
        try:
            for one in self._judged:
                thought = one.push(thought) if thought else ""
                thought += one.finish() if not self.is_thinking or is_last else ""
        except Refused as refusal:
            self.refuse(refusal)
            return "", []
        self.thought += thought
        return text, [Thought(thought)] if thought else []

    def refuse(self, refused: Refused) -> None:
        """End it with a guard's words."""
        self.refusal, self.verdict, self.finish_reason = str(refused), refused.verdict, "content_filter"

    def begin_uses(self, uses: Sequence[Use]) -> list[Part]:
        """The server's tools begin to run; what the client is to be told."""
        told = self._flushed()
        for use in uses:
            self._examine(use.call)
        if self.finish_reason is None:
            self.uses += uses
            self.order += uses
            told += map(Running, uses)
        return told

    def say(self, words: str) -> list[Part]:
        """Words of the program's own in the place of an answer: there is no passage to answer from."""
        self.finish_reason, self.cited = "stop", Cited(0, (), ())
        return [*self._noted(words), self.cited]

    def cite(self, passages: Sequence[Hit], read_out: str | None = None) -> list[Part]:
        """Hold the last text of an answer that has ended against the passages it was given."""
        text = self.order[-1] if self.order else ""
        if self.finish_reason not in ("stop", "length") or not text or not isinstance(text, str):
            return []
        self.cited = Cited(len(self.text) - len(text), cite(text, passages), passages, read_out)
        return [self.cited]

    def next_round(self, reader: CallReader | None) -> None:
        """The server's tools were run; the answer goes on."""
        self.own_calls, self.round_text, self._reader = [], "", reader

    def prepend(self, text: str, scored: Iterable[tuple[int, TokenLogprob | None]]) -> None:
        """Put a prompt first, with the log-probabilities of its tokens as far as they are known."""
        self.text = text + self.text
        self.logprobs = [found or Unscored(token) for token, found in scored] + self.logprobs

    def _end(self, reason: str, told: list[Part]) -> None:
        if reason in ("stop", "length") and self.own_calls and not self.calls:
            if all(call.is_whole for call in self.own_calls):
                return  # the tools' turn
            self.own_calls = []
        for call in self.own_calls:  # the client has to run its own first, and sends a history without this one
            use = Use(call, "was not run: the same answer calls tools of the client's", failed=True)
            told += [*self.begin_uses([use]), Ran(use)]
        told += self._flushed()
        if self.finish_reason is None:
            whole = bool(self.calls) and all(call.is_whole for call in self.calls)
            self.finish_reason = "tool_calls" if whole and reason in ("stop", "length") else reason

    def _is_own(self, part: Part) -> bool:
        return isinstance(part, Begun | Grown | Ended) and part.call.name in self._own

    def _passed(self, parts: list[Part]) -> list[Part]:
        """What may go on of some parts."""
        told: list[Part] = []
        for part in parts:
            if not isinstance(part, Words):
                if isinstance(part, Begun):
                    told += self._flushed()
                    self.calls.append(part.call)
                    self.order.append(part.call)
                if isinstance(part, Ended):
                    self._examine(part.call)
                if self.finish_reason is None:
                    told.append(part)
                continue
            text = part.text
            try:
                for one in self._filters:
                    text = one.push(text)
            except Refused as refusal:
                self.refuse(refusal)
                break
            told += self._noted(text)
        return told

    def _examine(self, call: Call) -> None:
        """Show a whole call to the filters; one that is refused ends the answer."""
        try:
            for one in self._filters:
                if isinstance(one, CallFilter) and self.finish_reason is None:
                    one.call(call.name, call.arguments)
        except Refused as refusal:
            self.refuse(refusal)

    def _flushed(self) -> list[Part]:
        """What the filters held back."""
        text = ""
        try:
            for one in self._filters:
                text = (one.push(text) if text else "") + one.finish()
        except Refused as refusal:
            self.refuse(refusal)
            return []
        return self._noted(text)

    def _noted(self, text: str) -> list[Part]:
        if not text:
            return []
        self.text += text
        self.round_text += text
        if self.order and isinstance(self.order[-1], str):
            self.order[-1] += text
        else:
            self.order.append(text)
        return [Words(text)]


def parts_of(speech: Speech) -> list[Part]:
    """All that is told of an answer that is done, at once."""
    parts: list[Part] = [Thought(speech.thought)] if speech.thought else []
    for one in speech.order:
        match one:
            case str():
                parts.append(Words(one))
            case Call():
                parts += [Begun(one), Grown(one, one.arguments), Ended(one)]
            case Use():
                parts += [Running(one), Ran(one)]
    return parts if speech.cited is None else [*parts, speech.cited]
