"""Requests to the engine, and the state of their answers."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from herd.errors import RequestError
from herd.infer.adjust import Adjustment
from herd.infer.blocks import ROOT
from herd.infer.grammar import FORMS, is_set
from herd.infer.sampler import stream_seed
from herd.infer.stops import StopStrings
from herd.tokenizer.stream import TextStream
from herd.types import Completion, SamplingParams, TokenLogprob

MAX_LOGPROBS = 20
MAX_SEED = 2**63

_numbers = itertools.count()


@dataclass(frozen=True)
class Piece:
    """The tokens that one step added to an answer; the last piece of an answer has a `finish_reason`."""

    index: int  # which of the request's n answers
    text: str  # whole characters, and never a part of a stop string
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None
    stop: str | None = None  # the stop string that ended the answer


class Request:
    """A prompt with its sampling parameters, and its n answers.

    Answers refer to it weakly, so that its prompt and grammar are freed as soon as the caller drops it: a reference
    cycle would wait for Python's garbage collector, which counts objects, not bytes.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, seed: int, listener: Callable[[Piece], None] | None = None
    ) -> None:
        self.number = next(_numbers)
        self.prompt, self.params, self.listener = prompt, params, listener
        chooses, self_ = params.num_drawn > params.n, weakref.ref(self)
        ngrams: dict[tuple[int, ...], int] = {}
        self.answers = [
            Answer(prompt, params, chooses, index, stream_seed(seed, index), self_, ngrams)
            for index in range(params.num_drawn)
        ]
        self.prompt_logprobs: list[TokenLogprob | None] = [None]  # nothing comes before the first token
        self.root = ROOT  # the content id of the empty prefix: each adapter and each owner has its own
        self.error: BaseException | None = None
        self.num_cached = 0  # tokens of the prompt found in the prefix cache

    @property
    def finished(self) -> bool:
        """Whether all answers have ended."""
        return all(answer.finish_reason for answer in self.answers)

    def raise_error(self) -> None:
        """Raise the error that ended the request, if there was one.

        Raises:
            RequestError: the grammar turned out to be impossible midway.
            RuntimeError: a step of the engine failed.
        """
        if isinstance(self.error, RequestError):
            raise self.error
        if self.error is not None:
            raise RuntimeError("the engine failed while it worked on this request") from self.error

    @property
    def chooses(self) -> bool:
        """Whether more answers are drawn than returned; the best are chosen at the end."""
        return self.params.num_drawn > self.params.n

    @property
    def best(self) -> list[Answer]:
        """The `n` answers to return, in order: where more were drawn, those of highest mean log-probability."""
        if not self.chooses:
            return self.answers
        return sorted(self.answers, key=lambda answer: answer.mean_logprob, reverse=True)[: self.params.n]

    @property
    def leader(self) -> Answer:
        """The answer whose prefill the others share."""
        return self.answers[0]


@dataclass(eq=False)
class Answer:
    """The state of one answer: its tokens, its row in the batch and its blocks in the cache."""

    prompt: list[int]
    params: SamplingParams
    chooses: bool
    index: int
    seed: int
    asked_by: weakref.ref[Request]
    prompt_ngrams: dict[tuple[int, ...], int]  # n-gram -> where the prompt continues after it; shared by all answers
    number: int = field(default_factory=lambda: next(_numbers))  # no two are the same
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    pieces: list[str] = field(default_factory=list)  # text so far, if it is decoded token by token

    drafts: list[int] = field(default_factory=list)  # guesses of the next tokens, to be verified by this step

    ngrams: dict[tuple[int, ...], int] = field(default_factory=dict)  # the same for the answer so far
    num_indexed: int = 0  # tokens of prompt and answer that are in the two

    row: int = -1  # in the batch, -1 while waiting
    admitted_at: int = -1  # the step that gave it its row
    served_at: int = -1  # the last step that computed a part of its prompt
    blocks: list[int] = field(default_factory=list)
    reserved_blocks: int = 0  # promised by the scheduler, not taken yet
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_drafter_computed: int = 0  # the same for a draft model's cache
    num_registered: int = 0  # full blocks registered for sharing
    content: int = ROOT  # the content id up to their end

    stream: TextStream | None = None
    stops: StopStrings | None = None
    adjustment: Adjustment | None = None
    sum_logprob: float = 0.0  # of the drawn tokens, where answers are ranked by it

    @property
    def request(self) -> Request:
        """The request it belongs to, kept alive by the scheduler until all answers have ended, then by the caller."""
        request = self.asked_by()
        assert request is not None, "an answer outlived its request"
        return request

    @property
    def num_tokens(self) -> int:
        """Prompt and answer together."""
        return len(self.prompt) + len(self.tokens)

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the answer's tokens."""
        return self.sum_logprob / max(len(self.tokens), 1)

    def token_at(self, place: int) -> int:
        """The token of answer or drafts at a position, counted from the prompt's first token."""
        place -= len(self.prompt)
        return self.tokens[place] if place < len(self.tokens) else self.drafts[place - len(self.tokens)]

    def token_range(self, start: int, stop: int) -> list[int]:
        """Tokens of prompt and answer from position `start` to `stop`."""
        prompt = self.prompt
        if stop <= len(prompt):
            return prompt[start:stop]
        return prompt[start:] + self.tokens[max(start - len(prompt), 0) : stop - len(prompt)]

    def follow_text(self, stream: TextStream) -> None:
        """Decode the text token by token, for a listener or for stop strings."""
        self.stream, self.stops = stream, StopStrings(self.params.stop)


class PieceQueue:
    """A listener that queues pieces until they are read."""

    def __init__(self) -> None:
        self.waiting: deque[Piece] = deque()

    def __call__(self, piece: Piece) -> None:
        self.waiting.append(piece)


def completion(answer: Answer, text: str) -> Completion:
    """A finished answer as the caller gets it."""
    params = answer.params
    return Completion(
        text=text,
        tokens=answer.tokens,
        finish_reason=answer.finish_reason or "cancelled",
        logprobs=answer.logprobs if params.logprobs is not None else None,
        prompt_tokens=len(answer.prompt),
        prompt_logprobs=answer.request.prompt_logprobs if params.prompt_logprobs is not None else None,
        repetition=repetition(answer.tokens),
    )


def repetition(tokens: Sequence[int], length: int = 4) -> float:
    """The share (0 to 1) of a text's token n-grams that repeat an earlier one.

    Example: "a b a b a b" has the 2-grams ab ba ab ba ab, of which the last three are repeats: 0.6.
    """
    num_grams = len(tokens) - length + 1
    if num_grams < 1:
        return 0.0
    return 1 - len({tuple(tokens[i : i + length]) for i in range(num_grams)}) / num_grams


def check_params(params: SamplingParams) -> None:
    """Refuse sampling parameters that are out of range.

    Raises:
        RequestError: naming every such field.
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
    rules |= _rules_of_adjustments(params)
    faults = [f"{name} must be {rule}, got {getattr(params, name)!r}" for name, (ok, rule) in rules.items() if not ok]
    forms = [name for name in FORMS if is_set(getattr(params, name))]
    if len(forms) > 1:
        faults.append(f"{' and '.join(forms)} are set, but only one of them can constrain an answer")
    if faults:
        raise RequestError("; ".join(faults))


def _rules_of_adjustments(params: SamplingParams) -> dict[str, tuple[bool, str]]:
    def penalty(value: object) -> tuple[bool, str]:
        return _is_number(value) and -2 <= value <= 2, "from -2 to 2"

    bias = params.logit_bias
    bias_is_right = isinstance(bias, Mapping) and all(
        _is_whole(token, 0) and _is_number(value) and -100 <= value <= 100 for token, value in bias.items()
    )
    choice_is_text = isinstance(params.choice, tuple) and all(isinstance(s, str) and s for s in params.choice)
    top = params.prompt_logprobs
    return {
        "repetition_penalty": (
            _is_number(params.repetition_penalty) and params.repetition_penalty > 0,
            "a finite number above 0 (1 changes nothing)",
        ),
        "presence_penalty": penalty(params.presence_penalty),
        "frequency_penalty": penalty(params.frequency_penalty),
        "logit_bias": (bias_is_right, "token ids with numbers from -100 to 100"),
        "min_tokens": (
            _is_whole(params.max_tokens, 1) and _is_whole(params.min_tokens, 0, params.max_tokens),
            "a whole number from 0 to max_tokens",
        ),
        "best_of": (
            params.best_of is None or (_is_whole(params.n, 1) and _is_whole(params.best_of, params.n)),
            "a whole number of at least n",
        ),
        "prompt_logprobs": (top is None or _is_whole(top, 0, MAX_LOGPROBS), f"a whole number from 0 to {MAX_LOGPROBS}"),
        "json_schema": (params.json_schema is None or isinstance(params.json_schema, Mapping), "a JSON schema (dict)"),
        "regex": (params.regex is None or isinstance(params.regex, str), "a string"),
        "grammar": (params.grammar is None or isinstance(params.grammar, str), "a string"),
        "choice": (choice_is_text, "a tuple of strings that are not empty"),
        "adapter": (params.adapter is None or isinstance(params.adapter, str), "the name of an adapter"),
        "ignore_eos": (isinstance(params.ignore_eos, bool), "true or false"),
        "stop_token_ids": (
            isinstance(params.stop_token_ids, tuple) and all(_is_whole(token, 0) for token in params.stop_token_ids),
            "token ids",
        ),
    }


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, low: int, high: int = MAX_SEED - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
