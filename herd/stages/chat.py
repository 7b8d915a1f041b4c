"""Chat with a model here in the terminal, or with any OpenAI-compatible server by its address.

Answers stream as they are made; Ctrl-C stops an answer, not the program. `/help` shows the commands: a system prompt,
settings, another answer, saving. A line that ends with a backslash continues in the next one, and three double quotes
open and close a text of several lines. When standard input is not a terminal, each line is a question of its own:
commands work there too, and `json=true` writes one JSON string per line. A base model continues the text it is given.
"""

from __future__ import annotations

import io
import sys
from typing import Literal

from herd.config import settings
from herd.errors import RequestError
from herd.infer.settings import EngineSettings
from herd.serve.terminal.session import answer_lines, converse, history_file, leave_when_told, line_editing
from herd.serve.terminal.speaker import documents_beside, open_speaker
from herd.serve.terminal.talk import Speaker, Talk
from herd.types import SamplingParams


@settings
class ChatSettings:
    """Talk to one model."""

    path: str
    """Checkpoint or run folder, or the address of a server (http://...)."""
    model: str | None = None
    """Which of a server's models; its first one when not given."""
    system: str | None = None
    """System prompt."""
    temperature: float = 0.6
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: float = 0.9
    """Keep the likeliest tokens up to this total probability."""
    max_tokens: int = 512
    """Longest answer, in tokens."""
    seed: int | None = None
    """The same seed gives the same answers."""
    json: bool = False
    """Where standard input is not a terminal: one JSON string a line, so that answers may hold line breaks."""
    beside: bool = True
    """At a terminal, tell what the index beside a demo's model holds, beside the model's own words."""
    history: bool = True
    """Keep a history of what was typed (arrow up), in a file that only you can read."""
    device: str = "cpu"
    """Where the model runs: cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number type to compute in; default: the checkpoint's own if this machine computes in it well."""
    quantize: Literal["int8", "int4", "fp8"] | None = None
    """Round the weights on loading."""
    engine: EngineSettings = EngineSettings()
    """How the model is run."""


def run(settings: ChatSettings) -> int:
    """Answer until the input ends; returns 2 if a line from a pipe could not be answered."""
    params = SamplingParams(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=settings.seed
    )
    if sys.stdin is None:
        raise RequestError("standard input is closed: there is nobody to ask a question")
    for stream, way in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=way)  # what is no text is told of, line by line; what cannot be written is a "?"
    beside = documents_beside(settings.path) if settings.beside and sys.stdin.isatty() else None
    talk = Talk(_speaker(settings, params), params, settings.system, beside=beside)
    if not sys.stdin.isatty():
        return answer_lines(talk, as_json=settings.json)
    leave_when_told()
    with line_editing(history_file() if settings.history else None):
        converse(talk, str(settings.path))
    return 0


def _speaker(settings: ChatSettings, params: SamplingParams) -> Speaker:
    options = settings.engine.options() | {
        "device": settings.device,
        "dtype": settings.dtype,
        "quantize": settings.quantize,
    }
    return open_speaker(str(settings.path), params, model=settings.model, **options)
