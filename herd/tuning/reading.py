"""Somebody's files: their rows, what kind of rows they are, and which of them are meant to judge by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from herd.data.choices import choice_shape_of
from herd.data.rows import SUFFIXES, RowSettings, read_rows, splits_in
from herd.data.shapes import shape_of
from herd.errors import DataError
from herd.log import say
from herd.tuning.labels import is_labelled

Placed = tuple[str, dict[str, Any]]
"""A row, and where it is."""

Kind = Literal["text", "chat", "label", "preferences"]

TEXTS = (".txt", ".md", ".rst")
_JUDGED = ("test", "eval", "validation", "val", "valid", "dev")  # the first that a folder has is judged by


def read(paths: Sequence[Path], options: RowSettings) -> list[Placed]:
    """All rows of files and folders; a text file is one row with its text.

    Raises:
        DataError: as `read_rows`; or a file is no UTF-8.
    """
    rows: list[Placed] = []
    for path in paths:
        files = _text_files(path)
        if not files:
            own = {name: weight for name, weight in options.weights.items() if name in _names(path)}
            rows += read_rows(path, replace(options, weights=own))
            continue
        for file in files:
            try:
                rows.append((str(file), {"text": file.read_text(encoding="utf-8-sig")}))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file}: cannot be read as text ({error})") from None
    if unknown := [name for name in options.weights if not any(name in _names(path) for path in paths)]:
        raise DataError(f"rows.weights names {unknown[0]}, which is not among the files")
    if not rows:
        raise DataError(f"{', '.join(map(str, paths))}: no rows")
    return rows


def _names(path: Path) -> list[str]:
    return [file.name for file in path.iterdir()] if path.is_dir() else [path.name]


def _text_files(path: Path) -> list[Path]:
    """The text files that a path means; none where it has rows."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        if any(file.name.endswith(SUFFIXES) for file in files):
            return []
        return [file for file in files if file.suffix.lower() in TEXTS]
    return [path] if path.suffix.lower() in TEXTS and path.exists() else []


def by_split(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files to learn from, and those to judge by where one folder has both by their names, which is said."""
    if len(paths) != 1 or not paths[0].is_dir():
        return list(paths), []
    splits = splits_in(paths[0])
    judged = next((name for name in _JUDGED if name in splits), None)
    if "train" not in splits or judged is None:
        return list(paths), []
    told = {name: [str(file.relative_to(paths[0])) for file in files] for name, files in splits.items()}
    unused = [file for name, files in told.items() if name not in ("train", judged) for file in files]
    named = [", ".join(told[name]) for name in ("train", judged)]
    more = f"; not read: {', '.join(unused)}" if unused else ""
    say(f"  the folder has its own split: learned from {named[0]}, judged by {named[1]}{more}")
    return splits["train"], splits[judged]


def kind_of(rows: Sequence[Placed]) -> tuple[Kind, str]:
    """What rows are (text, chat, label or preferences), and the name of their shape.

    Raises:
        DataError: they are of several kinds, or of none.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for place, row in rows:
        found.setdefault(_kind(row), []).append(place)
    kinds = Counter({kind: 0 for kind, _ in found})
    for (kind, _), places in found.items():
        kinds[kind] += len(places)
    if "" in kinds:
        place = next(places[0] for (kind, _), places in found.items() if not kind)
        row = next(row for where, row in rows if where == place)
        raise DataError(
            f"{place}: neither a conversation, a question with its answer, a text with a label, a preference nor a "
            f"text; the row has {', '.join(map(str, row)) or 'nothing'}. docs/tuning.md lists what is read (of "
            "messages in trees, whole trees); other "
            "names are mapped: rows.columns='{prompt: QUESTION, completion: REPLY}' or '{text: BODY, label: TOPIC}'"
        )
    if len(kinds) > 1:
        told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        rare = kinds.most_common()[-1][0]
        place = next(places[0] for (kind, _), places in found.items() if kind == rare)
        raise DataError(f"rows of several kinds lie together ({told}; {place} is {rare}): give one kind at a time")
    shapes = sorted({shape for _, shape in found})
    return cast(Kind, next(iter(kinds))), ", ".join(shapes)


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    if {"message_id", "parent_id"} <= row.keys():  # one message of a tree is no page
        return "", ""
    if shape := choice_shape_of(row):
        return "preferences", shape
    if {"text", "label"} <= row.keys() and shape_of(row) is None:
        return "label", "text and label"
    if shape := shape_of(row):
        return "chat", shape
    if is_labelled(row):
        return "label", "text and label"
    return ("text", "raw text") if isinstance(row.get("text"), str) else ("", "")
