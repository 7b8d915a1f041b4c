"""Who answers: a checkpoint in any format that Herd opens, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from herd import endpoint as client
from herd.errors import ConfigError, RequestError
from herd.evals.cache import divergence, rounded_attention
from herd.evals.likelihood import Choice, Continuation, Likelihood, continuation, likelihoods, tree_attention
from herd.formats.checkpoint import Checkpoint
from herd.infer.build import with_attention
from herd.infer.engine import Engine
from herd.infer.remote import RemoteEngine
from herd.model.llama import LlamaForCausalLM
from herd.types import Completion, Conversation, SamplingParams

Prompt = str | Conversation
"""Raw text, or the messages of a conversation."""

Model = Path | Checkpoint
"""A path or address, or what is open already."""

_OF_CONTEXT = re.compile(r"\((400|413|422)\).*\bcontext", re.DOTALL)  # how servers refuse what is too long


@dataclass(frozen=True)
class TooLong:
    """In the place of an answer: the prompt does not fit into the context."""

    why: str


class Subject(Protocol):
    """Whoever is asked."""

    @property
    def speaks_chat(self) -> bool:
        """Whether it was trained on conversations; else it continues raw text."""

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood] | TooLong]:
        """Of every prompt's continuations, where all of them fit."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str | TooLong]:
        """One answer to each prompt that fits."""

    def cache_divergences(self, texts: Sequence[str], context_tokens: int | None) -> list[dict[str, float] | TooLong]:
        """What an int8 cache changes about each text's predictions (`herd.evals.cache.divergence`)."""

    def forget(self) -> None:
        """Drop what is kept of earlier questions, so that answers do not depend on them."""

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written so far, where they are known; shared beginnings count in every prompt.

        `answers_cut`: free answers that the end of the context ended.
        """


class Local:
    """A checkpoint on this machine; it is loaded when it is first asked."""

    def __init__(self, path: Model) -> None:
        self.path = path
        self.usage = {"tokens_read": 0, "tokens_written": 0, "answers_cut": 0}

    @classmethod
    def around(cls, engine: Engine) -> Local:
        """Of an engine that is there already, such as one of a model in training."""
        found = cls(Path("memory"))
        found.__dict__["engine"] = engine
        return found

    @property
    def num_open(self) -> int:
        """Answers that are being written, or wait to be; 0 where likelihoods are computed."""
        engine = self.__dict__.get("engine")
        return engine.num_waiting + engine.num_running if engine else 0

    def forget(self) -> None:
        if "engine" in self.__dict__:
            self.engine.weights_changed()

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine that generates; likelihoods are computed with its weights."""
        return Engine(self.path)

    @property
    def speaks_chat(self) -> bool:
        return self.engine.speaks_chat

    @functools.cached_property
    def _model(self) -> LlamaForCausalLM:
        return with_attention(self.engine.model, tree_attention)

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood] | TooLong]:
        rows = [self._continuations(prompt, choices) for prompt, choices in asked]
        lengths = [max((len(one.ids) - 1 for one in row), default=0) for row in rows]
        context = self.engine.max_context
        found = iter(self.score([one for row, length in zip(rows, lengths) if length <= context for one in row]))
        return [
            [next(found) for _ in row] if length <= context else self._too_long("prompt with its answer", length)
            for row, length in zip(rows, lengths)
        ]

    def _too_long(self, what: str, length: int) -> TooLong:
        return TooLong(f"its {what} has {length:,} tokens, the context is {self.engine.max_context:,}")

    def score(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        """Likelihoods of continuations that are ids already.

        Raises:
            RequestError: one is longer than the context.
        """
        context = self.engine.max_context
        if (longest := max((len(one.ids) - 1 for one in continuations), default=0)) > context:
            raise RequestError(
                f"{self.path}: a prompt with its answer has {longest:,} tokens, the context is {context:,}; give the "
                "task fewer shots or shorter prompts (nothing is cut silently)"
            )
        self.usage["tokens_read"] += sum(len(one.ids) for one in continuations)
        return likelihoods(self._model, continuations)

    def cache_divergences(self, texts: Sequence[str], context_tokens: int | None) -> list[dict[str, float] | TooLong]:
        context = min(context_tokens or self.engine.max_context, self.engine.max_context)
        rows = [self.engine.encode(text)[:context] for text in texts]
        self.usage["tokens_read"] += sum(map(len, rows))
        rounded = with_attention(self.engine.model, rounded_attention)
        return [divergence(self._model, rounded, ids) for ids in rows]

    def _continuations(self, prompt: Prompt, choices: Sequence[Choice]) -> list[Continuation]:
        """The prompt with each choice as ids; a space at the seam goes with the choice."""
        encode = functools.cache(self.engine.encode) if isinstance(prompt, str) else self.engine.tokenizer.encode
        ids = [] if isinstance(prompt, str) else self.engine.encode(prompt)
        text = prompt if isinstance(prompt, str) else ""
        found = []
        for before, scored in choices:
            stem = (text + before).rstrip()
            space = (text + before)[len(stem) :]
            found.append(continuation([*ids, *encode(stem)], [*ids, *encode(stem + space + scored)]))
        return found

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str | TooLong]:
        encoded = [self.engine.encode(prompt) for prompt in prompts]
        found = iter(self.generate_from([ids for ids in encoded if len(ids) < self.engine.max_context], params))
        return [
            next(found) if len(ids) < self.engine.max_context else self._too_long("prompt", len(ids)) for ids in encoded
        ]

    def generate_from(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[str]:
        """Answers to prompts that are ids already."""
        answers = self.engine.generate(list(prompts), params)  # type: ignore[arg-type]  # ids are taken too
        assert isinstance(answers, list)  # a list of prompts was given
        given = [answer for answer in answers if isinstance(answer, Completion)]
        self.usage["tokens_read"] += sum(answer.prompt_tokens for answer in given)
        self.usage["tokens_written"] += sum(len(answer.tokens) for answer in given)
        self.usage["answers_cut"] += sum(
            answer.finish_reason == "length" and len(answer.tokens) < params.max_tokens for answer in given
        )
        return [answer.text for answer in given]


class Endpoint:
    """A server that speaks OpenAI's API; its key is taken from the environment variable OPENAI_API_KEY."""

    speaks_chat = True

    def __init__(self, url: str, kept: Path | None = None) -> None:
        self.url = url
        self.usage = {"tokens_read": 0}
        self._engine = RemoteEngine(client.Endpoint(url, key=os.environ.get("OPENAI_API_KEY"), cache=kept))

    def forget(self) -> None:
        pass  # nothing is kept here

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood] | TooLong]:
        raise RequestError(
            f"{self.url}: an endpoint answers, but does not tell how likely given answers are; ask it tasks with "
            "`ask: generate`, or name the checkpoint instead"
        )

    def cache_divergences(self, texts: Sequence[str], context_tokens: int | None) -> list[dict[str, float] | TooLong]:
        raise RequestError(f"{self.url}: an endpoint does not show its cache; name the checkpoint instead")

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str | TooLong]:
        def answer(prompt: Prompt) -> Any:
            return self._fitting(lambda: self._engine.generate([prompt], params)[0])

        if prompts:  # the settings are tried once, on what fits if anything does
            shortest = min(prompts, key=lambda one: len(str(one)))
            self._fitting(lambda: self._engine.check(shortest, params))
        answers = list(self._engine.endpoint.each(answer, prompts))
        self.usage["tokens_read"] += sum(one.prompt_tokens for one in answers if not isinstance(one, TooLong))
        return [one if isinstance(one, TooLong) else one.text for one in answers]

    def _fitting(self, ask: Callable[[], Any]) -> Any:
        """What is asked for, or that the server says that it is too long."""
        try:
            return ask()
        except RequestError as error:
            if _OF_CONTEXT.search(str(error)):
                return TooLong(str(error))
            raise


def address_of(model: Model | str) -> str | None:
    """The address of an endpoint, where a model is one; as a path it has lost a slash."""
    found = re.match(r"(https?):/+(.+)", str(model))
    return f"{found[1]}://{found[2]}" if found else None


def open_subject(model: Model | str, kept: Path | None = None) -> Subject:
    """A checkpoint, run folder or GGUF file, or an address (http://HOST/v1); what an address answers is kept in the
    folder `kept`, so that nothing is asked twice when it fails midway."""
    if isinstance(model, Checkpoint):
        return Local(model)
    address = address_of(model)
    return Endpoint(address, kept) if address else Local(Path(model))


def named(models: Mapping[str, Path], paths: Sequence[Path]) -> dict[str, Path]:
    """All models by name: bare paths are called by the end of their path, addresses by themselves.

    Raises:
        ConfigError: there is none.
    """
    if not models and not paths:
        raise ConfigError("no model: give a path, an address or models.NAME=PATH")
    found = dict(models)
    for path in paths:
        name = address_of(path) or (path.parent.name if path.name in ("checkpoint", "adapter") else path.name)
        found[name if name not in found else str(path)] = path
    return found
