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


class Local:
    """A checkpoint on this machine; it is loaded when it is first asked."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        flat = [one for row in rows for one in row]
        context = self.engine.max_context
        if (longest := max((len(one.ids) for one in flat), default=0)) > context:
            raise RequestError(
                f"{self.path}: a prompt with its answer has {longest:,} tokens, the context is {context:,}; give the "
                "task fewer shots or shorter prompts (nothing is cut silently)"
            )
        found = iter(likelihoods(self._model, flat))
        return [[next(found) for _ in row] for row in rows]

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
        answers = self.engine.generate(list(prompts), params)
        assert isinstance(answers, list)  # a list of prompts was given
        return [answer.text for answer in answers if isinstance(answer, Completion)]

    def num_tokens(self, prompt: Prompt) -> int:
        return len(self.engine.encode(prompt))


class Endpoint:
    """A server that speaks OpenAI's API; its key is taken from the environment variable OPENAI_API_KEY."""

    speaks_chat = True

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = RemoteEngine(url, key=os.environ.get("OPENAI_API_KEY"))

    def likelihoods(self, asked: Sequence[tuple[Prompt, Sequence[Choice]]]) -> list[list[Likelihood]]:
        raise RequestError(
            f"{self.url}: an endpoint answers, but does not tell how likely given answers are; ask it tasks with "
            "`ask: generate`, or name the checkpoint instead"
        )

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
        return [answer.text for answer in self._engine.generate(list(prompts), params)]

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
