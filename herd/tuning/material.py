"""What somebody's rows are, found out from the rows themselves, and the same rendered and split for tuning.

Raw text, conversations (questions and answers among them), texts with a label, or preferences. Rows to judge on are
kept aside first, whole prompts or groups, then a few to watch while learning; the rest is learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from herd.data.conversations import count_special, documents_of, fitted, group_of, render_talk
from herd.data.preferences import Pairs
from herd.data.shapes import talks_of
from herd.data.shards import Documents
from herd.data.split import kept_aside
from herd.data.talks import Notes, Talk, rendered_mark
from herd.errors import DataError
from herd.tokenizer.llama3 import Rendered
from herd.tokenizer.tokenizer import Tokenizer
from herd.tuning.labels import Labelled
from herd.tuning.reading import Kind, Placed
from herd.types import Message

_JUDGED = (0.2, 40, 500)
"""Of the rows: the share to judge on, at least so many (but a third at most), and at most so many."""
_WATCHED = (0.1, 200)
"""The share to watch while learning, and at most so many."""
_LEAST_ROWS = 6
_SECTION_BYTES = 3000
_OF_TEXTS = ("text", "group", "url")
_FEW_TEXTS = 20  # of which sections are held out, and not whole texts


class Entry(NamedTuple):
    """One row, rendered: with each label of a label task, else once."""

    group: str
    options: list[Rendered]
    right: int = 0
    num_bytes: int = 1  # of what is predicted
    asked: tuple[Message, ...] = ()
    reference: str = ""


@dataclass(frozen=True)
class Part:
    """Some of the rows; `documents` has `per_row` of each, `Entry`'s options."""

    documents: Documents
    groups: list[str]
    right: np.ndarray
    num_bytes: np.ndarray
    per_row: int = 1
    entries: list[Entry] = field(default_factory=list)
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True)
class Material:
    """Rows as they are tuned on: learned, watched while learning, judged before and after."""

    kind: Kind
    learned: Part
    watched: Part
    judged: Part
    labels: tuple[str, ...] = ()
    sample: tuple[Rendered, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def longest(self) -> int:
        """Tokens of the longest document, or of the longest pair, which shares a row."""
        return max(_longest(part) for part in (self.learned, self.watched, self.judged))

    @property
    def num_tokens(self) -> int:
        """Of what is learned, prompts among it."""
        return int(self.learned.documents.num_tokens.sum())


def texts(rows: Sequence[Placed], tokenizer: Tokenizer, longest: int, notes: Notes) -> list[Entry]:
    """Raw texts in sections of whole paragraphs; all of a text is learned."""
    found = []
    for place, row in rows:
        group = str(row.get("group") or row.get("url") or place)
        sections = _sections(row["text"])
        if mark := rendered_mark(row["text"]):
            raise DataError(
                f"{place}: the text is a conversation that is rendered already (it has {mark!r}), and its marks would "
                "be learned as plain text; give the messages, or a dialogue of `### Human:` and `### Assistant:`"
            )
        count_special(tokenizer, row["text"], notes)
        notes.count_texts({key: value for key, value in row.items() if key not in _OF_TEXTS})
        for number, section in enumerate(sections):
            bos, eos = number == 0, number == len(sections) - 1
            tokens = tokenizer.encode(section, bos=bos, eos=eos)
            pieces = [tokens[start : start + longest + 1] for start in range(0, len(tokens) - 1, longest)]
            if len(pieces) > 1:
                notes.changed[f"paragraphs of more than {longest:,} tokens, cut in pieces"] += 1
            own = group if len(rows) >= _FEW_TEXTS else f"{group}, section {number}"
            for piece in pieces:
                size = len(tokenizer.decode(piece[1:]).encode("utf-8", "replace"))
                found.append(Entry(own, [Rendered(piece, [False] + [True] * (len(piece) - 1))], 0, max(size, 1)))
    return found


def _sections(text: str) -> list[str]:
    """A text cut between paragraphs, into sections of about `_SECTION_BYTES`; together they are the text again."""
    found = [""]
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if found[-1] and len(found[-1]) + len(paragraph) > _SECTION_BYTES:
            found.append("")
        found[-1] += paragraph + "\n\n"
    found[-1] = found[-1].removesuffix("\n\n")
    return [section for section in found if section.strip()]


def talks(rows: Sequence[Placed], tokenizer: Tokenizer, longest: int, too_long: str, notes: Notes) -> list[Entry]:
    """Conversations, each once.

    Raises:
        DataError: a row is no conversation, or cannot be learned.
    """
    found = []
    for place, row in rows:
        try:
            for talk in talks_of(row, notes):
                rendered = fitted(render_talk(tokenizer, talk, notes), longest, too_long, notes)
                if rendered is not None:
                    found.append(_told(group_of(row, talk), rendered, talk))
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    return found


def _told(group: str, rendered: Rendered, talk: Talk) -> Entry:
    answers = [message for message in talk.messages if message["role"] == "assistant"]
    said = [str(one.get("content") or "") for one, on in zip(answers, talk.trained or [True] * len(answers)) if on]
    asked = tuple(talk.messages[:-1]) if talk.messages[-1]["role"] == "assistant" and not talk.tools else ()
    return Entry(group, [rendered], 0, max(sum(len(text.encode()) for text in said), 1), asked, said[-1])


def classified(
    rows: Sequence[Placed], tokenizer: Tokenizer, longest: int, too_long: str, notes: Notes, known: Labelled
) -> list[Entry]:
    """Texts with a label, as a question and its answer, once with each label."""
    found = []
    for place, row in rows:
        text, label = known.text_of(row), known.label_of(row)
        if not text.strip() or label not in known.labels:
            notes.left_out["rows without a text or label" if not (text.strip() and label) else "labels seen once"] += 1
            continue
        count_special(tokenizer, text, notes)
        asked = known.question(text)
        try:
            options = [render_talk(tokenizer, _answered(asked, one), Notes()) for one in known.labels]
            fitting = [
                fitted(one, longest, "refuse" if too_long == "refuse" else "leave_out", Notes()) for one in options
            ]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        if None in fitting:
            notes.left_out[f"longer than {longest:,} tokens"] += 1
            continue
        right = known.labels.index(label)
        entry = Entry(text, options, right, len(label.encode()), ({"role": "user", "content": asked},), label)
        found.append(entry)
    return found


def _answered(asked: str, answer: str) -> Talk:
    return Talk([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], [True])


def split(
    kind: Kind, entries: Sequence[Entry], tokenizer: Tokenizer, judged: Sequence[Entry] | None, labels: Sequence[str]
) -> Material:
    """Entries in their three parts; `judged` are somebody's own to judge on.

    Raises:
        DataError: there are too few rows, or all have the same prompt.
    """
    learned, watched, apart = _parted([entry.group for entry in entries], own=judged is not None)
    parts = [[entry for entry, here in zip(entries, part, strict=True) if here] for part in (learned, watched, apart)]
    if judged is not None:
        parts[2] = list(judged)
    made = [_part(part, tokenizer, every=number == 2) for number, part in enumerate(parts)]
    return Material(kind, made[0], made[1], made[2], tuple(labels), (parts[0][0].options[parts[0][0].right],))


def split_pairs(pairs: Pairs, judged: Pairs | None, tokenizer: Tokenizer) -> Material:
    """Preferences in their three parts.

    Raises:
        DataError: as `split`.
    """
    pairs = pairs.select(pairs.is_extreme())
    learned, watched, apart = _parted([str(group) for group in pairs.group[::2]], own=judged is not None)
    parts = [pairs.select(np.repeat(part, 2)) for part in (learned, watched, apart)]
    if judged is not None:
        parts[2] = judged.select(judged.is_extreme())
    made = []
    for part in parts:
        groups = [str(group) for group in part.group[::2]]
        ones = np.ones(len(groups), np.int64)
        made.append(Part(part.documents, groups, 0 * ones, ones, 2, [], part))
    first = tuple(
        Rendered(part.tokens(n).tolist()[:-1], (mask.tolist()[:-1] if (mask := part.is_trained(n)) is not None else []))
        for part in (parts[0].documents,)
        for n in (0, 1)
    )
    return Material("preferences", made[0], made[1], made[2], ("chosen", "rejected"), first)


def _parted(groups: Sequence[str], *, own: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows are learned, watched and judged; of these none where others are given (`own`)."""
    count = len(groups)
    if count < _LEAST_ROWS or len(set(groups)) < 3:
        raise DataError(
            f"too little to tune on: {count} rows with {len(set(groups))} different prompts or texts; a part is kept "
            f"aside to judge by, so at least {_LEAST_ROWS} rows and 3 prompts are needed, and some hundreds are usual"
        )
    share, least, most = _JUDGED
    judged = 0.0 if own else min(max(share * count, min(least, count / 3)), most)
    apart = np.array(kept_aside(groups, judged, "judged"))
    rest = [group for group, off in zip(groups, apart) if not off]
    watched = np.zeros(count, bool)
    watched[~apart] = kept_aside(rest, min(_WATCHED[0] * count, _WATCHED[1]), "watched")
    return ~apart & ~watched, watched, apart


def _part(entries: Sequence[Entry], tokenizer: Tokenizer, *, every: bool) -> Part:
    """A part as documents: of each entry the right option, or `every` one."""
    rendered = [one for entry in entries for one in (entry.options if every else [entry.options[entry.right]])]
    return Part(
        documents_of("rows", rendered, tokenizer),
        [entry.group for entry in entries],
        np.array([entry.right for entry in entries], dtype=np.int64),
        np.array([entry.num_bytes for entry in entries], dtype=np.int64),
        len(entries[0].options) if every and entries else 1,
        list(entries),
    )


def _longest(part: Part) -> int:
    lengths = np.maximum(part.documents.num_tokens - 1, 1)
    if part.pairs is not None:
        lengths = lengths.reshape(-1, 2).sum(1)
    return int(lengths.max(initial=1))
