"""Models that think before they answer: what bounds their thoughts, so that an answer always follows."""

from __future__ import annotations

from dataclasses import replace

from herd.infer.engine import Engine
from herd.infer.request import Piece
from herd.infer.request import Request as EngineRequest
from herd.serve.limits import Limits
from herd.serve.prompts import is_ids, longest
from herd.serve.speech import Speech
from herd.serve.thoughts import BEFORE_ANSWER, CLOSE, OPEN, ThoughtReader, thinks
from herd.serve.turn import Turn

_TAIL = 8  # tokens of a prompt that may hold its last word


def first_bound(engine: Engine, turn: Turn, max_tokens: int) -> int:
    """Where an answer is looked at that may still be thinking; its own bound where it cannot."""
    return max(int(BEFORE_ANSWER * max_tokens), 1) if _is_bounded(engine, turn) else max_tokens


def _is_bounded(engine: Engine, turn: Turn) -> bool:
    return _may_think(turn) and thinks(engine.tokenizer) and turn.params.logprobs is None


def _may_think(turn: Turn) -> bool:
    """In a conversation, in no form: a form allows no thought."""
    first, params = turn.inputs[0], turn.params
    has_form = any((params.json_schema is not None, params.regex, params.choice, params.grammar))
    return not (is_ids(first) or isinstance(first, str) or has_form)


class Thinker:
    """The thoughts of one request's answers."""

    def __init__(self, engine: Engine, limits: Limits, turn: Turn, first: EngineRequest) -> None:
        self.most = longest(engine, limits, len(first.prompt), turn)  # tokens of one answer, thoughts and all
        self._tokenizer, self._turn = engine.tokenizer, turn
        self._is_bounded = _is_bounded(engine, turn)
        self._opened = engine.tokenizer.decode(first.prompt[-_TAIL:]).rstrip().endswith(OPEN)
        special = engine.tokenizer.special
        self._marks = {special[mark]: mark for mark in (OPEN, CLOSE) if mark in special}
        self._drawn: dict[int, list[int]] = {}

    def reader(self) -> ThoughtReader | None:
        """What sorts one answer; None where none can think."""
        return ThoughtReader(opened=self._opened) if _may_think(self._turn) else None

    def seen(self, index: int, piece: Piece, speech: Speech) -> tuple[Piece, bool]:
        """A piece as it is to be read, and whether its answer is to go on behind it."""
        if self._marks and any(token in self._marks for token in piece.tokens):  # tokens that have no text
            marks = "".join(self._marks.get(token, "") for token in piece.tokens)
            piece = replace(piece, text=piece.text + marks)
        if not self._is_bounded:
            return piece, False
        self._drawn.setdefault(index, []).extend(piece.tokens)
        count = speech.num_tokens + len(piece.tokens)
        goes_on = piece.finish_reason == "length" and index in self._drawn and count < self.most
        if goes_on:
            piece = replace(piece, finish_reason=None)
        return piece, goes_on

    def continued(self, index: int, prompt: list[int], speech: Speech) -> tuple[str, list[int]]:
        """What is said in the model's place, and the prompt that the answer goes on from."""
        prompt = [*prompt, *self._drawn.get(index, ())]
        if not speech.is_thinking:
            return "", prompt
        ids = {mark: token for token, mark in self._marks.items()}
        close = [ids[CLOSE]] if CLOSE in ids else self._tokenizer.encode(CLOSE)
        self._drawn[index] += [*self._tokenizer.encode("\n"), *close, *self._tokenizer.encode("\n\n")]
        return f"\n{CLOSE}\n\n", [*prompt, *self._tokenizer.encode("\n"), *close, *self._tokenizer.encode("\n\n")]
