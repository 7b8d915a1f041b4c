"""A turn in the form that all dialects are brought into: what is asked of the model, whoever asks it how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from herd.infer.engine import Input
from herd.types import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a request asks for, checked but for the model."""

    inputs: Sequence[Input | list[int]]  # prompts as text or ids, or conversations; each is answered by itself
    params: SamplingParams  # but for the longest answer
    max_tokens: int | None = None  # longest answer; what fits, within the server's limit, when None
    tools: Sequence[dict[str, Any]] = ()  # that the model is told of, as OpenAI writes them
    one_call: bool = False  # of an answer that holds several, the first
    echo: bool = False  # begin each answer with its prompt
    stream: bool = False
    with_usage: bool = False  # a stream ends with counts of tokens

    @property
    def num_places(self) -> int:
        """Answers that are drawn, for all inputs."""
        return len(self.inputs) * self.params.num_drawn
