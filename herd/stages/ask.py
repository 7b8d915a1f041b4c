"""Ask a model a question about your own files: the answer, each sentence with the passage that says it.

`herd ask notes.index MODEL "Who pays for a lost key?"`; MODEL is a checkpoint, a run folder, or a server's address.
If no passage contains enough of the question's words, the question is declined without asking the model.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.errors import RequestError
from herd.infer.settings import EngineSettings
from herd.knowledge.citations import Citation, cite, marked
from herd.knowledge.grounding import LEAST_COVERED, NOT_FOUND, Library, grounded
from herd.knowledge.index import Hit, Index
from herd.log import say
from herd.serve.terminal.speaker import open_speaker
from herd.types import Message, SamplingParams


@settings
class AskSettings:
    """The question, the model, and the index of the files."""

    bare_words: ClassVar = ("index", "path", "question")

    index: Path
    """Folder of the index (`herd index`)."""
    path: str
    """Checkpoint or run folder, or the address of a server (http://...)."""
    question: str
    """The question."""
    model: str | None = None
    """Which of a server's models; its first one when not given."""
    limit: int = 5
    """Passages that the model is given."""
    least: float = LEAST_COVERED
    """Share of the question's words, weighted by rarity, that a passage must contain; else it is declined."""
    temperature: float = 0.0
    """Sampling temperature; 0 always takes the likeliest token."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
    json: bool = False
    """Print one JSON object."""
    device: str = "cpu"
    """Where the model runs: cpu or cuda."""
    engine: EngineSettings = EngineSettings()
    """How the model is run."""

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError("limit: expected 1 or more")
        if not 0 <= self.least <= 1:
            raise ValueError("least: expected a share, from 0 to 1")


def run(settings: AskSettings) -> None:
    """Print the answer with its citations.

    Raises:
        DataError: no index lies there, or it is damaged.
        CheckpointError: there is no model.
        RequestError: the question holds no word, the model was not trained on conversations, or refuses.
    """
    library = Library(Index(settings.index), limit=settings.limit, least=settings.least)
    talk = [Message(role="user", content=settings.question)]
    passages = library.find(talk).passages
    if not passages:
        _print(settings, NOT_FOUND, [], [])
        return
    params = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens)
    speaker = open_speaker(
        settings.path, params, model=settings.model, device=settings.device, **settings.engine.options()
    )
    if not speaker.speaks_chat:
        raise RequestError(f"{settings.path} is a base model, never trained on conversations; choose one that was")
    answer = "".join(piece for piece, _ in speaker.stream(grounded(talk, passages), params)).strip()
    if stale := sum(hit.stale for hit in passages):
        say(f"{stale} of {len(passages)} passages are of files that have changed since: run herd index again")
    _print(settings, answer, passages, cite(answer, passages))


def _print(settings: AskSettings, answer: str, passages: Sequence[Hit], citations: Sequence[Citation]) -> None:
    if settings.json:
        result = {"answer": answer, "passages": [asdict(hit) for hit in passages]}
        print(
            json_format.dumps(result | {"citations": [asdict(one) for one in citations]}, ensure_ascii=False, indent=1)
        )
        return
    lines = [marked(answer, citations)]
    for one in citations:
        if one.supported and one.passage is not None:
            lines.append(f'[{one.passage + 1}] {passages[one.passage].source}: "{one.quote}"')
    print("\n".join(dict.fromkeys(lines)))
