"""What is asked of the engine, and how far each answer has come."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from herd.errors import RequestError
from herd.infer.blocks import ROOT
from herd.infer.sampler import stream_seed
from herd.infer.stops import StopStrings
from herd.tokenizer.stream import TextStream
from herd.types import Completion, SamplingParams, TokenLogprob

MAX_LOGPROBS = 20
MAX_SEED = 2**63

_numbers = itertools.count()


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer; the last piece of an answer has a `finish_reason`."""

    index: int  # which of the request's n answers
    text: str  # whole characters, and never a part of a stop string
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None


class Request:
    """A prompt with its sampling settings, and the n answers that grow from it."""

    def __init__(
        self, prompt: list[int], params: SamplingParams, seed: int, listener: Callable[[Piece], None] | None = None
    ) -> None:
        self.number = next(_numbers)
        self.prompt, self.params, self.listener = prompt, params, listener
        self.answers = [Answer(self, index, stream_seed(seed, index)) for index in range(params.n)]
        self.error: BaseException | None = None

    @property
    def finished(self) -> bool:
        """All answers have ended."""
        return all(answer.finish_reason for answer in self.answers)

    @property
    def leader(self) -> Answer:
        """The answer whose prompt pass serves the others too."""
        return self.answers[0]


@dataclass(eq=False)
class Answer:
    """One answer in the making: its tokens, its place in the batch and its blocks in the cache."""

    request: Request
    index: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    pieces: list[str] = field(default_factory=list)  # text so far, where it is followed as it grows

    row: int = -1  # place in the batch, -1 while waiting
    blocks: list[int] = field(default_factory=list)
    owed_blocks: int = 0  # promised by the scheduler, not taken yet
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_registered: int = 0  # full blocks made known for sharing
    content: int = ROOT  # the content id up to there

    stream: TextStream | None = None
    stops: StopStrings | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and answer together."""
        return len(self.request.prompt) + len(self.tokens)

    def token_range(self, start: int, stop: int) -> list[int]:
        """Tokens of prompt and answer by place."""
        prompt = self.request.prompt
        if stop <= len(prompt):
            return prompt[start:stop]
        return prompt[start:] + self.tokens[max(start - len(prompt), 0) : stop - len(prompt)]

    def follow_text(self, stream: TextStream) -> None:
        """Decode token by token: for a listener, or for stop strings."""
        self.stream, self.stops = stream, StopStrings(self.request.params.stop)


class Pieces:
    """A listener that keeps pieces until they are read."""

    def __init__(self) -> None:
        self.waiting: deque[Piece] = deque()

    def __call__(self, piece: Piece) -> None:
        self.waiting.append(piece)


def completion(answer: Answer, text: str) -> Completion:
    """A finished answer as the caller sees it."""
    params = answer.request.params
    return Completion(
        text=text,
        tokens=answer.tokens,
        finish_reason=answer.finish_reason or "cancelled",
        logprobs=answer.logprobs if params.logprobs is not None else None,
        prompt_tokens=len(answer.request.prompt),
    )


def check_params(params: SamplingParams) -> None:
    """Refuse sampling settings that mean nothing.

    Raises:
        RequestError: naming every field that is out of its range.
    """
    stop_is_text = isinstance(params.stop, list | tuple) and all(isinstance(s, str) and s for s in params.stop)
    rules = {
        "temperature": (_is_number(params.temperature) and params.temperature >= 0, "a finite number of at least 0"),
        "top_k": (_is_whole(params.top_k, 0), "a whole number of at least 0 (0 keeps all tokens)"),
        "top_p": (_is_number(params.top_p) and 0 < params.top_p <= 1, "above 0 and at most 1"),
        "min_p": (_is_number(params.min_p) and 0 <= params.min_p <= 1, "from 0 to 1"),
        "max_tokens": (_is_whole(params.max_tokens, 1), "a whole number of at least 1"),
        "n": (_is_whole(params.n, 1), "a whole number of at least 1"),
        "seed": (params.seed is None or _is_whole(params.seed, -MAX_SEED, MAX_SEED - 1), "a 64-bit whole number"),
        "stop": (stop_is_text, "a tuple of strings that are not empty"),
        "logprobs": (
            params.logprobs is None or _is_whole(params.logprobs, 0, MAX_LOGPROBS),
            f"a whole number from 0 to {MAX_LOGPROBS}",
        ),
    }
    faults = [f"{name} must be {rule}, got {getattr(params, name)!r}" for name, (ok, rule) in rules.items() if not ok]
    if faults:
        raise RequestError("; ".join(faults))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, low: int, high: int = MAX_SEED) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
