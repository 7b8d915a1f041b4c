"""Groups of answers drawn from a model in training, token by token with their log-probabilities.

Answers are drawn at temperature 1 from the whole distribution: that is the policy which the trainer differentiates.
Where an environment replies (a tool's output, the next question), its tokens are read by the model and never learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.errors import DataError
from herd.evals.answers import prompt_of
from herd.infer.cache import BLOCK_SIZE, block_bytes
from herd.infer.engine import Engine
from herd.infer.request import Answer, Request, repetition
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.chat import render, stops
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Message, SamplingParams

Reply = Callable[[Mapping[str, Any], Sequence[Message]], Sequence[Message] | None]
"""(row, the conversation so far, the answer last) -> the environment's messages, or None: it is over."""


@dataclass
class Sample:
    """One answer, of one turn or several: everything behind the prompt. The lists have one entry per token."""

    prompt: list[int]
    messages: list[Message]  # the whole conversation
    tokens: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)  # what the model wrote, and not what the environment said
    log_probs: list[float] = field(default_factory=list)  # the engine's, 0 where nothing is learned
    turns: int = 0
    cut: bool = False  # it ran into a limit instead of ending

    @property
    def text(self) -> str:
        """What the model said last."""
        return next((str(m["content"]) for m in reversed(self.messages) if m["role"] == "assistant"), "")

    @property
    def num_learned(self) -> int:
        """Tokens the model wrote."""
        return sum(self.learned)

    @property
    def repetition(self) -> float:
        """The share (0 to 1) of its token 4-grams that occurred before."""
        return repetition([token for token, own in zip(self.tokens, self.learned) if own])


@dataclass(frozen=True)
class Limits:
    """How long an answer may be: tokens of one turn, tokens of prompt and answers together, and turns."""

    answer_tokens: int
    row_tokens: int
    turns: int = 1


def encode_prompt(tokenizer: Tokenizer, row: Mapping[str, Any]) -> list[int]:
    """A row's prompt as tokens, an answer opened; its `tools` are told.

    Raises:
        DataError: the row has no prompt, or the template refuses it.
    """
    return render(tokenizer, prompt_of(row), generation_prompt=True, tools=row.get("tools")).tokens


def draw_groups(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    size: int,
    limits: Limits,
    *,
    seed: int,
    reply: Reply | None = None,
) -> list[list[Sample]]:
    """`size` answers to each row's prompt, from the weights as they are.

    Every call has a fresh engine, so that a run that is continued draws what an undisturbed one draws.

    Raises:
        DataError: a prompt leaves no room for an answer.
    """
    engine = _engine(model, tokenizer, len(rows) * size, limits.row_tokens)
    requests = []
    for number, row in enumerate(rows):
        prompt = encode_prompt(tokenizer, row)
        if len(prompt) + limits.answer_tokens > limits.row_tokens:
            raise DataError(
                f"a prompt of {len(prompt)} tokens and {limits.answer_tokens} of answer are more than a row of "
                f"{limits.row_tokens}; raise batch.row_tokens"
            )
        requests.append(engine.request(prompt, _params(limits, size, seed * 1_000_003 + number)))
    _go(engine, requests)
    groups = []
    for row, request in zip(rows, requests, strict=True):
        groups.append([Sample(request.prompt, [*prompt_of(row)]) for _ in request.answers])
        for sample, answer in zip(groups[-1], request.answers, strict=True):
            _take(engine, sample, answer)
    if reply is not None:
        _converse(engine, rows, groups, limits, reply, seed)
    return groups


def _converse(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[Sample]],
    limits: Limits,
    reply: Reply,
    seed: int,
) -> None:
    """Let the environment reply, and the model answer, until it is over or a limit is reached."""
    going = [(row, sample) for row, group in zip(rows, groups, strict=True) for sample in group]
    for turn in range(1, limits.turns):
        asked: list[tuple[Mapping[str, Any], Sample]] = []
        requests = []
        for number, (row, sample) in enumerate(going):
            said = None if sample.cut else reply(row, sample.messages)
            if said is None:
                continue
            between = _between(engine.tokenizer, sample.messages[:-1], said, row.get("tools"))
            so_far = [*sample.prompt, *sample.tokens, *between]
            if len(so_far) + limits.answer_tokens > limits.row_tokens:
                sample.cut = True
                continue
            sample.messages += said
            _add(sample, between, [False] * len(between), [0.0] * len(between))
            asked.append((row, sample))
            requests.append(engine.request(so_far, _params(limits, 1, (seed * 1_000_003 + number) * 1009 + turn)))
        _go(engine, requests)
        for (_, sample), request in zip(asked, requests, strict=True):
            _take(engine, sample, request.answers[0])
        going = asked
    for row, sample in going:  # what the last answer leads to is for the environment to know
        if not sample.cut and (said := reply(row, sample.messages)) is not None:
            sample.messages += said
            sample.cut = True


def _between(tokenizer: Tokenizer, before: Sequence[Message], said: Sequence[Message], tools: Any) -> list[int]:
    """The tokens from the end of an answer to the opening of the next: what the environment said, in its format."""
    answered = [*before, Message(role="assistant", content="x")]
    alone = render(tokenizer, answered, tools=tools).tokens
    after = render(tokenizer, [*answered, *said], generation_prompt=True, tools=tools).tokens
    ends = set(stops(tokenizer))
    last = max((place for place, token in enumerate(alone) if token in ends), default=None)
    if last is None or alone[: last + 1] != after[: last + 1]:
        raise DataError(
            "the chat template writes an answer otherwise once messages follow it, so that what an environment says "
            "cannot be put behind it; take a template that leaves earlier messages as they are"
        )
    return after[last + 1 :]


def _engine(model: LlamaForCausalLM, tokenizer: Tokenizer, sequences: int, row_tokens: int) -> Engine:
    weight = model.model.norm.weight
    blocks = sequences * (row_tokens // BLOCK_SIZE + 2)
    engine = Engine.of(
        model,
        tokenizer,
        max_sequences=sequences,
        cache_bytes=blocks * block_bytes(model.config, BLOCK_SIZE, weight.dtype),
        max_context=min(row_tokens + 1, model.config.max_position_embeddings),
    )
    engine.warm_up()  # kernels that come later would round otherwise, midway
    return engine


def _params(limits: Limits, size: int, seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_p=1.0, max_tokens=limits.answer_tokens, n=size, seed=seed, logprobs=0)


def _go(engine: Engine, requests: Sequence[Request]) -> None:
    for request in requests:
        engine.submit(request)
    while not all(request.finished for request in requests):
        engine.step()
    for request in requests:
        request.raise_error()


def _take(engine: Engine, sample: Sample, answer: Answer) -> None:
    _add(sample, answer.tokens, [True] * len(answer.tokens), [one.logprob for one in answer.logprobs])
    sample.messages.append(Message(role="assistant", content=engine.text_of(answer)))
    sample.turns += 1
    sample.cut = answer.finish_reason == "length"


def _add(sample: Sample, tokens: Sequence[int], learned: Sequence[bool], log_probs: Sequence[float]) -> None:
    sample.tokens += tokens
    sample.learned += learned
    sample.log_probs += log_probs
