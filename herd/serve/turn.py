"""A turn in the form that all dialects are brought into: `before -> generate -> [tool -> generate]* -> after`.

Before, guards look at what is asked. Then the model answers; where it calls tools that the server runs, they are run
and it goes on. What it says passes through the guards' filters as it grows, so that streams pass through them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from herd.infer.engine import Input
from herd.toolbox.errand import Errand
from herd.types import SamplingParams


@dataclass(frozen=True)
class Budget:
    """What one answer may use of the server's own tools."""

    calls: int = 8
    seconds: float = 30.0  # for one call
    characters: int = 8000  # of one result, as the model is told it


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a request asks for, checked but for the model."""

    inputs: Sequence[Input | list[int]]  # prompts as text or ids, or conversations; each is answered by itself
    params: SamplingParams  # but for the longest answer
    max_tokens: int | None = None  # longest answer; what fits, within the server's limit, when None
    is_ceiling: bool = False  # that many at most: what fits where that is less
    tools: Sequence[dict[str, Any]] = ()  # that the model is told of, as OpenAI writes them
    own: Sequence[str] | None = None  # of the server's own tools, those that may be called; all of them when None
    effort: str | None = None  # how much to think, in the dialect's word
    beside: Sequence[str] = ()  # ids of files that lie beside Python's code
    files: Mapping[str, bytes] = field(default_factory=dict)  # what lies there, those of the messages too
    documents: bool | None = None  # answer from the server's documents; where it does so by itself, when None
    max_calls: int | None = None  # of the server's own tools; the server's budget when None
    one_call: bool = False  # of an answer that holds several, the first
    must_call: bool = False  # the form of the answer allows nothing but a call
    typed_calls: bool = False  # calls begin with their type, for another form of the answer looks like one
    template: Mapping[str, Any] = field(default_factory=dict)  # the template's own variables
    goes_on: bool = False  # the last message is the answer's beginning
    opens_answer: bool = True  # the prompt ends with the header of the answer
    echo: bool = False  # begin each answer with its prompt
    empty: bool = False  # nothing is to be written: only the prompt is asked about
    stream: bool = False
    with_usage: bool = False  # a stream ends with counts of tokens
    usage_throughout: bool = False  # and each of its events has them
    owner: str | None = None  # whose key it came with
    request: str = ""  # the id it is written down under

    @property
    def num_answers(self) -> int:
        """Answers that are drawn, for all inputs."""
        return len(self.inputs) * self.params.num_drawn


class Refused(Exception):
    """A guard ends an answer; its words are told instead, and its verdict beside them where it has one."""

    def __init__(self, words: str, verdict: Mapping[str, Any] | None = None) -> None:
        super().__init__(words)
        self.verdict = verdict


class Filter(Protocol):
    """What one answer's text passes through. It may hold text back, change it, or raise `Refused`."""

    def push(self, text: str) -> str:
        """The text that may go on."""
        ...

    def finish(self) -> str:
        """The text that was held back, once it is certain that nothing follows."""
        ...


@runtime_checkable
class CallFilter(Protocol):
    """A filter that looks at the calls of its answer, too."""

    def call(self, name: str, arguments: str) -> None:
        """Look at a call that was written to its end (`arguments` is JSON), before it is run or told to be whole.

        Raises:
            Refused: it may not be made.
        """
        ...


class Guard(Protocol):
    """Looks at what is asked, and at what is answered."""

    async def before(self, turn: Turn) -> Turn:
        """The turn as it may go on.

        Raises:
            Refused: it may not.
        """
        ...

    def after(self, turn: Turn) -> Filter:
        """The filter of one answer."""
        ...


@runtime_checkable
class Inspector(Protocol):
    """A guard that looks at what tools bring from outside, too: data, which may hold instructions of a stranger's."""

    async def data(self, text: str, source: str) -> str:
        """A tool's result as the model may read it; `source` is the tool's name.

        Raises:
            Refused: it may not; the model is told so in its place.
        """
        ...


class Tool(Protocol):
    """A tool that the server runs by itself: the model is told of it in conversations."""

    @property
    def function(self) -> Mapping[str, Any]:
        """Its `name`, `description` and `parameters`, as OpenAI writes a function."""
        ...

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """What the model is told of the result; the errand lasts from call to call of one answer.

        Raises:
            Failed: it cannot; the model is told why.
        """
        ...


@runtime_checkable
class StaysOpen(Protocol):
    """A tool that holds something from answer to answer."""

    async def close(self) -> None:
        """Let go of it: the server stops."""
        ...
