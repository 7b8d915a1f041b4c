"""Prune: conversations without those of a tone nobody wants, of low quality, or too similar to better ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from herd.config import settings
from herd.data.rows import read_rows, write_rows
from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError
from herd.formats.encoder import open_encoder
from herd.infer.judge import JudgeModel, asking
from herd.log import say
from herd.post.clean import ASKED, apologises, balanced, different, fault_of_tone, grade_of, ranks
from herd.post.prompts import apart_from, origin_of
from herd.post.reward import RewardModel
from herd.run import Run, open_run
from herd.types import Conversation

_CLUSTER_ROWS = 1000  # about as many rows as a cluster has


@settings
class PruneSettings:
    """Clean conversations, and keep of those that say the same the best."""

    out: Path
    """Run folder to write."""
    conversations: list[Path]
    """Files or folders of conversations in any form that docs/tuning.md lists."""
    tone: bool = True
    """Leave out answers with more than two emojis, or with an exclamation mark at more than half of their sentences."""
    apologies: float = 0.05
    """Largest share (0 to 1) of answers that say sorry."""
    reward: Path | None = None
    """A reward model: its best `quality` of the conversations are of high quality."""
    judge: JudgeModel = field(default_factory=JudgeModel)
    """A judge (judge.endpoint, judge.checkpoint) of quality and difficulty from 1 to 3: full marks are high quality."""
    quality: float = 0.25
    """Share (0 to 1) that is of high quality by reward. A conversation stays where either of the two says so."""
    encoder: Path | None = None
    """Folder of an encoder (all-MiniLM-L6-v2, BERT, RoBERTa) that tells what says the same."""
    similarity: float = 0.9
    """Cosine of two whole conversations from which the one of less quality x difficulty is left out."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: a conversation whose first question stands in one of them is left out."""

    def __post_init__(self) -> None:
        shares = (self.apologies, self.quality)
        if not self.conversations or not all(0 <= one <= 1 for one in shares) or not 0 < self.similarity <= 1:
            raise ValueError("give conversations; apologies and quality are shares of 0 to 1, similarity above 0 to 1")


class _Row(NamedTuple):
    messages: Conversation
    row: dict[str, Any]

    @property
    def answer(self) -> str:
        return str(self.messages[-1]["content"])

    @property
    def text(self) -> str:
        return "\n".join(f"{one['role']}: {one['content']}" for one in self.messages)


def run(settings: PruneSettings) -> Path:
    """Write `conversations.jsonl`; what was left out, and why, is counted.

    Raises:
        DataError: nothing is left.
    """
    names = ("conversations", "reward", "encoder")
    inputs = {name: getattr(settings, name) for name in names} | {"benchmarks": [*settings.benchmarks]}
    with open_run(settings.out, stage="rounds prune", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        rows = _read(settings)
        left_out: Counter[str] = Counter()
        rows = _of_good_tone(settings, rows, left_out)
        quality, difficulty, high = _graded(settings, rows)
        left_out["low quality"] = len(rows) - int(high.sum())
        kept = np.flatnonzero(high)
        if settings.encoder is not None and len(kept):
            worth = (quality * difficulty)[kept]
            vectors = open_encoder(settings.encoder).embed([rows[place].text for place in kept], label="embed")
            clusters = max(1, len(kept) // _CLUSTER_ROWS)
            found = different(vectors, worth.tolist(), similarity=settings.similarity, clusters=clusters)
            left_out["says what a better one says"] = len(kept) - len(found)
            kept = kept[found]
        _write(run, [rows[place].row for place in kept], len(rows), left_out)
    return run.path


def _read(settings: PruneSettings) -> list[_Row]:
    notes, found = Notes(), []
    for place, row in read_rows(settings.conversations):
        try:
            talks = talks_of(row, notes)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        for talk in talks:
            if talk.messages[-1]["role"] == "assistant":
                tools = {"tools": talk.tools} if talk.tools else {}
                source = {"source": row["source"]} if isinstance(row.get("source"), str) else {}
                found.append(_Row(talk.messages, {"messages": talk.messages} | tools | source | origin_of(row)))
            else:
                notes.left_out["conversations that end without an answer"] += 1
    notes.tell()
    kept = {id(row) for row in apart_from([one.row for one in found], settings.benchmarks)}
    return [one for one in found if id(one.row) in kept]


def _of_good_tone(settings: PruneSettings, rows: list[_Row], left_out: Counter[str]) -> list[_Row]:
    if settings.tone:
        faults = [fault_of_tone(row.answer) for row in rows]
        left_out.update(fault for fault in faults if fault)
        rows = [row for row, fault in zip(rows, faults) if fault is None]
    stays = balanced([apologises(row.answer) for row in rows], settings.apologies)
    left_out["too many apologies"] = len(rows) - sum(stays)
    return [row for row, one in zip(rows, stays) if one]


def _graded(settings: PruneSettings, rows: list[_Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quality and difficulty of each row (0 to 1), and which are of high quality; all, where nothing tells."""
    quality, difficulty = np.ones(len(rows)), np.ones(len(rows))
    if settings.reward is not None:
        quality = ranks(RewardModel(settings.reward).score([row.messages for row in rows]))
        high = quality > 1 - settings.quality
    else:
        high = np.zeros(len(rows), bool)
    if settings.judge.endpoint or settings.judge.checkpoint:
        with asking(settings.judge) as ask:
            texts = [row.text[-settings.judge.characters :] for row in rows]
            grades = {
                name: [grade_of(one) for one in ask([f"{asked}\nSay the number alone.\n\n{text}" for text in texts])]
                for name, asked in ASKED.items()
            }
        if unread := sum(one is None for several in grades.values() for one in several):
            say(f"  {unread:,} of the judge's {2 * len(rows):,} answers hold no grade from 1 to 3; 1 is taken")
        judged = np.array([one or 1 for one in grades["quality"]])
        quality = quality * judged / 3
        difficulty = np.array([one or 1 for one in grades["difficulty"]]) / 3
        return quality, difficulty, high | (judged == 3)
    return quality, difficulty, high if settings.reward is not None else np.ones(len(rows), bool)


def _write(run: Run, rows: list[dict], of: int, left_out: Counter[str]) -> None:
    for reason, count in (+left_out).most_common():
        say(f"  left out: {reason} ({count:,})")
    if not rows:
        raise DataError("no conversation is left; raise `quality`, `similarity` or `apologies`, or set tone=false")
    write_rows(run.path / "conversations.jsonl", rows)
    say(f"  {len(rows):,} conversations are kept")
    run.finish({"kept": len(rows), "left_out": dict(+left_out)})
