"""Who answers: a checkpoint in any format that Herd opens, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from herd.errors import ConfigError, RequestError
from herd.evals.likelihood import Choice, Continuation, Likelihood, continuation, likelihoods, tree_attention
from herd.infer.build import with_attention
from herd.infer.engine import Engine
from herd.infer.remote import RemoteEngine
from herd.model.llama import LlamaForCausalLM
from herd.types import Completion, Conversation, SamplingParams

Prompt = str | Conversation
"""Raw text, or the messages of a conversation."""


class Subject(Protocol):
    """Whoever is asked."""

    @property
    def speaks_chat(self) -> bool:
        """Whether it was trained on conversations; else it continues raw text."""

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood]]:
        """Of every prompt's continuations."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
        """One answer to each prompt."""

    def num_tokens(self, prompt: Prompt) -> int | None:
        """Tokens of a prompt; None where that is not known."""

    def forget(self) -> None:
        """Drop what is kept of earlier questions, so that answers do not depend on them."""

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written so far, where they are known; shared beginnings count in every prompt."""


class Local:
    """A checkpoint on this machine; it is loaded when it is first asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.usage = {"tokens_read": 0, "tokens_written": 0}

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

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood]]:
        rows = [self._continuations(prompt, choices) for prompt, choices in asked]
        found = iter(self.score([one for row in rows for one in row]))
        return [[next(found) for _ in row] for row in rows]

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

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
        return self.generate_from([self.engine.encode(prompt) for prompt in prompts], params)

    def generate_from(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[str]:
        """Answers to prompts that are ids already."""
        answers = self.engine.generate(list(prompts), params)  # type: ignore[arg-type]  # ids are taken too
        assert isinstance(answers, list)  # a list of prompts was given
        given = [answer for answer in answers if isinstance(answer, Completion)]
        self.usage["tokens_read"] += sum(answer.prompt_tokens for answer in given)
        self.usage["tokens_written"] += sum(len(answer.tokens) for answer in given)
        return [answer.text for answer in given]

    def num_tokens(self, prompt: Prompt) -> int:
        return len(self.engine.encode(prompt))


class Endpoint:
    """A server that speaks OpenAI's API; its key is taken from the environment variable OPENAI_API_KEY."""

    speaks_chat = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.usage = {"tokens_read": 0}
        self._engine = RemoteEngine(url, key=os.environ.get("OPENAI_API_KEY"))

    def forget(self) -> None:
        pass  # nothing is kept here

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood]]:
        raise RequestError(
            f"{self.url}: an endpoint answers, but does not tell how likely given answers are; ask it tasks with "
            "`ask: generate`, or name the checkpoint instead"
        )

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
        answers = self._engine.generate(list(prompts), params)
        self.usage["tokens_read"] += sum(answer.prompt_tokens for answer in answers)
        return [answer.text for answer in answers]

    def num_tokens(self, prompt: Prompt) -> None:
        return None


def address_of(model: Path | str) -> str | None:
    """The address of an endpoint, where a model is one; as a path it has lost a slash."""
    found = re.match(r"(https?):/+(.+)", str(model))
    return f"{found[1]}://{found[2]}" if found else None


def open_subject(model: Path | str) -> Subject:
    """A checkpoint, run folder or GGUF file, or an address (http://HOST/v1)."""
    address = address_of(model)
    return Endpoint(address) if address else Local(Path(model))


def named(models: Mapping[str, Path], paths: Sequence[Path]) -> dict[str, Path]:
    """All models by name: bare paths are called by the end of their path, addresses by themselves.

    Raises:
        ConfigError: there is none.
    """
    if not models and not paths:
        raise ConfigError("no model: give a path, an address or models.NAME=PATH")
    found = dict(models)
    for path in paths:
        name = address_of(path) or (path.parent.name if path.name == "checkpoint" else path.name)
        found[name if name not in found else str(path)] = path
    return found
