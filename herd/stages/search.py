"""Search an index made by `herd index`: the sentence that answers, and passages with file, heading and position.

`answer="..."` adds citations: each sentence with the passage that supports it, or marked as unsupported.
"""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.knowledge.citations import Citation, cite, marked
from herd.knowledge.index import Hit, Index
from herd.knowledge.reading import Reading, read_out
from herd.log import say


@settings
class SearchSettings:
    """Where to search, and what for."""

    bare_words: ClassVar = ("path", "question")

    path: Path
    """Folder of the index."""
    question: str
    """A question or a few words."""
    limit: int = 5
    """Passages to show."""
    words_only: bool = False
    """Search by words only (BM25), even if the index has vectors."""
    answer: str = ""
    """An answer to check: each of its sentences against the passages that the question finds."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError("limit: expected 1 or more")


def run(settings: SearchSettings) -> None:
    """Print what was found.

    Raises:
        DataError: no index lies there, or it is damaged.
        RequestError: a question without a word, or with too many.
    """
    index = Index(settings.path)
    hits = index.search(settings.question, settings.limit, words_only=settings.words_only)
    if index.has_vectors and not settings.words_only and not any("meaning" in hit.ways for hit in hits):
        say("searched by words alone: the encoder has no words for this question")
    if stale := sum(hit.stale for hit in hits):
        say(f"{stale} of {len(hits)} passages are of files that have changed since: run herd index again")
    citations = cite(settings.answer, hits) if settings.answer else []
    reading = None if settings.answer else read_out(index, settings.question)
    if settings.json:
        result = {"hits": [asdict(hit) for hit in hits], "citations": [asdict(one) for one in citations]}
        answer = {"reading": asdict(reading) if reading else None}
        print(json_format.dumps(answer | result, ensure_ascii=False, indent=1))
    elif settings.answer:
        print(_cited(settings.answer, citations, hits))
    else:
        print(_read(reading) + _listed(hits))


def _read(reading: Reading | None) -> str:
    """The sentence that answers, where one does."""
    if reading is None:
        return ""
    name = f"{reading.line}\n    " if reading.line else ""
    return f"{name}{reading.text}\n    {reading.hit.source}\n\n"


def _listed(hits: list[Hit]) -> str:
    if not hits:
        return "nothing was found"
    blocks = []
    for number, hit in enumerate(hits, 1):
        body = "\n".join(f"    {line}" for line in hit.text.splitlines())
        blocks.append(f"[{number}] {hit.source}{' (changed since)' if hit.stale else ''}\n{body}")
    return "\n\n".join(blocks)


def _cited(answer: str, citations: list[Citation], hits: list[Hit]) -> str:
    lines = [marked(answer, citations), ""]
    for one in citations:
        if one.supported and one.passage is not None:
            lines.append(f'[{one.passage + 1}] {hits[one.passage].source}: "{one.quote}"')
    return "\n".join(dict.fromkeys(lines))
