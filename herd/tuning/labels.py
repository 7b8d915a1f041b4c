"""Texts with a label: which columns hold them, and how a model is asked for the label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herd.errors import DataError
from herd.log import say

TEXT_KEYS = (
    *("text", "sentence", "review", "content", "comment", "tweet", "message", "document", "body", "utterance"),
    *("title", "headline", "question", "query", "input", "prompt", "article", "description"),
)
LABEL_KEYS = (
    *("label", "labels", "class", "category", "sentiment", "intent", "topic", "target", "emotion", "stars", "rating"),
    *("label_text", "label_name", "tag", "type", "y"),
)
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"))
_MOST_LABELS = 200
_MOST_NAMED = 24  # labels that the question names


@dataclass(frozen=True)
class Labelled:
    """The columns of a label task, its labels, and the question around a text."""

    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    ask: str

    def text_of(self, row: Mapping[str, Any]) -> str:
        """What is to be labelled."""
        return "\n".join(str(row.get(name) if row.get(name) is not None else "") for name in self.texts)

    def label_of(self, row: Mapping[str, Any]) -> str:
        """Its label as text, empty where there is none."""
        value = row.get(self.label)
        return "" if value is None or value != value else str(value).strip()

    def question(self, text: str) -> str:
        """What the model is asked."""
        return self.ask.replace("{labels}", ", ".join(self.labels)).replace("{text}", text.strip())


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether a row has a text and a label by the names of its keys."""
    return bool(_texts(row)) and _label(row) is not None


def labelled(rows: Sequence[tuple[str, Mapping[str, Any]]], ask: str) -> Labelled:
    """How these rows are labelled; labels that only one row has are no labels, which is said when rows are read.

    Raises:
        DataError: there are fewer than two labels, or so many that they are no labels.
    """
    first = rows[0][1]
    texts, label = _texts(first), _label(first)
    if not texts or label is None:
        raise DataError(f"{rows[0][0]}: no text with a label; map them: rows.columns='{{text: BODY, label: TOPIC}}'")
    task = Labelled(texts, label, (), ask)
    counts = Counter(task.label_of(row) for _, row in rows)
    counts.pop("", None)
    names = sorted(name for name, count in counts.items() if count > 1)
    if len(names) < 2 or len(names) > _MOST_LABELS:
        raise DataError(
            f"`{label}` has {len(names)} different values of more than one row; expected 2 to {_MOST_LABELS} labels. "
            f"If they are answers: kind=chat rows.columns='{{prompt: {texts[0]}, completion: {label}}}'"
        )
    unread = sorted({str(key) for _, row in rows for key in row} - {*texts, label})
    if unread:
        say(f"  not read: {', '.join(f'`{name}`' for name in unread)}")
    usual = "{text}\n\nWhich of these fits best: {labels}?"
    many = "{text}\n\nWhich label fits best?"
    return Labelled(texts, label, tuple(names), ask or (usual if len(names) <= _MOST_NAMED else many))


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    pair = next((pair for pair in _PAIRS if all(isinstance(row.get(name), str) for name in pair)), None)
    name = next((name for name in TEXT_KEYS if isinstance(row.get(name), str)), None)
    return pair or ((name,) if name else ())


def _label(row: Mapping[str, Any]) -> str | None:
    """The key of the label; a name beats a number beside it."""
    found = [name for name in LABEL_KEYS if isinstance(row.get(name), str | int | bool | float)]
    named = [name for name in ("label_text", "label_name") if name in found]
    return next(iter(named or found), None)
