"""A model that grades: a local checkpoint, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path

from herd.config import settings
from herd.curate.judge.grades import Ask
from herd.endpoint import Endpoint, Patience, Prices
from herd.infer.engine import Engine
from herd.log import say
from herd.types import Completion, Message, SamplingParams


@settings
class JudgeModel:
    """The model that grades."""

    endpoint: str | None = None
    """An OpenAI-compatible server to ask, such as http://localhost:8000/v1 (vLLM, SGLang, `herd serve`)."""
    model: str = "default"
    """The model's name at that server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, if it wants one."""
    checkpoint: Path | None = None
    """A local chat checkpoint to ask instead."""
    sample: int = 2000
    """Number of documents to grade."""
    characters: int = 4000
    """Characters of each document that the judge is shown."""
    answer_tokens: int = 200
    """Longest answer, in tokens."""
    concurrency: int = 16
    """Requests to a server at the same time."""
    cache: Path | None = None
    """Folder in which a server's answers are kept; the same question is not asked again, in any run."""
    prices: Prices = field(default_factory=Prices)
    """What the server charges, for the total cost printed at the end."""

    def __post_init__(self):
        if self.endpoint and self.checkpoint:
            raise ValueError("endpoint and checkpoint exclude each other: give one of them")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: expected an address such as http://localhost:8000/v1, got {self.endpoint!r}")
        if min(self.sample, self.characters, self.answer_tokens, self.concurrency) < 1:
            raise ValueError("sample, characters, answer_tokens and concurrency must be at least 1")


@contextmanager
def asking(judge: JudgeModel) -> Iterator[Ask]:
    """A function from prompts to the judge's answers, in order; a server's usage is printed at the end.

    Raises:
        UserError: the server refuses, cannot be reached, or gives a malformed answer.
    """
    if judge.checkpoint:
        yield _ask_checkpoint(judge)
        return
    endpoint = Endpoint(
        judge.endpoint or "",
        key=os.environ.get(judge.key_variable),
        patience=Patience(tries=6, pause_seconds=0.5),
        num_at_once=judge.concurrency,
        cache=judge.cache,
        prices=judge.prices,
    )

    def ask(prompt: str) -> str:
        talk, most = [Message(role="user", content=prompt)], judge.answer_tokens
        answer = endpoint.complete(talk, model=judge.model, temperature=0, max_tokens=most)
        return answer.choices[0].text

    try:
        yield lambda prompts: list(endpoint.each(ask, prompts))
    finally:
        say(f"  judge: {endpoint.count}")


def _ask_checkpoint(judge: JudgeModel) -> Ask:
    assert judge.checkpoint is not None
    engine = Engine(judge.checkpoint)
    params = SamplingParams(temperature=0.0, max_tokens=judge.answer_tokens)

    def ask(prompts: list[str]) -> list[str]:
        answers = engine.generate([[Message(role="user", content=prompt)] for prompt in prompts], params)
        return [answer.text for answer in answers if isinstance(answer, Completion)]

    return ask
