"""Labelled rows for guards: read from people's files, or made of lists of wishes and the sentences they stand in."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from herd.config import find_recipe
from herd.data.rows import RowSettings, read_rows
from herd.errors import ConfigError, DataError
from herd.log import say
from herd.markup import read_markup
from herd.safety.policy import PLACES, SAFE, UNSAFE, Policy, Where

_TEXTS = ("text", "prompt", "content", "message", "question", "input", "sentence", "comment")
_LABELS = ("categories", "category", "label", "labels")
_MOST_VALUES = 100_000  # of a file of lists


@dataclass(frozen=True)
class Row:
    """A text with what it violates: category codes, `unsafe`, or nothing."""

    text: str
    codes: frozenset[str]  # empty for a harmless text
    where: Where = "input"
    group: str = ""  # what a split must not tear apart

    @property
    def is_unsafe(self) -> bool:
        """Whether it violates anything."""
        return bool(self.codes)

    def violates(self, counted: Collection[str]) -> bool:
        """Whether it violates one of these categories, or its category is not known."""
        return self.is_unsafe and (UNSAFE in self.codes or not self.codes.isdisjoint(counted))


def labelled_rows(
    paths: Sequence[Path], policy: Policy, options: RowSettings | None = None, *, where: Where = "input"
) -> list[Row]:
    """The rows of files: a text (`text`, `prompt`, ...), and its `label` or `categories` (codes or names of the policy,
    `safe`, `unsafe`; several as a list or with commas); perhaps `where` and `group`.

    Rows without text are left out, and counted, as are those that stand there twice; a text with two labels counts as
    the union of its categories.

    Raises:
        DataError: a row without label, a label that is none of the policy's, or no row at all.
    """
    found: dict[tuple[str, Where], Row] = {}
    counts: Counter[str] = Counter()
    for place, raw in read_rows(paths, options or RowSettings()):
        row = _row(place, raw, policy, where)
        if not row.text.strip():
            counts["without a text, left out"] += 1
            continue
        key = (" ".join(row.text.split()).lower(), row.where)
        if before := found.get(key):
            differs = bool(before.codes) != bool(row.codes)
            counts["with both labels, harmless and not: taken as harmful" if differs else "that stand there twice"] += 1
            row = Row(before.text, before.codes | row.codes, row.where, before.group)
        found[key] = row
    for what, count in counts.items():
        say(f"  {count:,} rows {what}")
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no rows with a text")
    return list(found.values())


def _row(place: str, raw: Mapping[str, Any], policy: Policy, where: Where) -> Row:
    text = next((raw[name] for name in _TEXTS if isinstance(raw.get(name), str)), None)
    key = next((name for name in _LABELS if raw.get(name) is not None), None)
    if text is None or key is None:
        missing = f"a text ({', '.join(_TEXTS)})" if text is None else f"a label ({', '.join(_LABELS)})"
        raise DataError(
            f"{place}: lacks {missing}; it has {', '.join(map(str, raw))}. Other names are mapped: "
            "columns='{text: BODY, label: VERDICT}'"
        )
    value = raw[key]
    words = value if isinstance(value, list) else re.split(r"[,;]", str(value))
    try:
        codes = {policy.code_of(str(word)) for word in words} - {SAFE}
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    told = raw.get("where") or where
    if told not in PLACES:
        raise DataError(f"{place}: `where` is {told!r}; expected {', '.join(PLACES)}")
    group = str(raw.get("group") or "") or " ".join(text.split()).lower()
    return Row(text, frozenset(codes), cast(Where, told), group)


# ---- rows that are made ----------------------------------------------------------------------------------------------


def made_rows(file: Path | str, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows from a file of lists: each entry of its `rows` fills the wishes of a list (`x`) into sentences (`text`).

    An entry has `text` (the list of sentences, in which `{x}`, or `{X}` with a capital, stands for a wish), perhaps
    `x`, `label` (default: the key under which the wish or sentence stands), `where`, and `each`: how many of the
    sentences a wish is drawn for (all if left out). A row's group is its wish, or with `group: text` its sentence.

    Raises:
        ConfigError: the file cannot be read, or an entry names a list that is not there.
    """
    file = find_recipe(Path(file))
    try:
        lists = read_markup(file, _MOST_VALUES)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(lists, dict) or not isinstance(lists.get("rows"), list):
        raise ConfigError(f"{file}: expected lists, and `rows`, which says how rows are made of them")
    draw = random.Random(seed)
    for number, entry in enumerate(lists["rows"], 1):
        where = f"{file}: rows, entry {number}"
        if not isinstance(entry, dict) or "text" not in entry:
            raise ConfigError(f"{where}: expected `text`, the name of a list of sentences")
        if unknown := set(entry) - {"text", "x", "label", "where", "each", "group"}:
            raise ConfigError(f"{where}: no setting `{min(unknown)}`")
        yield from _filled(entry, lists, where, draw)


def _filled(entry: Mapping[str, Any], lists: Mapping[str, Any], where: str, draw: random.Random) -> Iterator[dict]:
    sentences = _items(lists, entry["text"], where)
    wishes = _items(lists, entry["x"], where) if "x" in entry else [("", "")]
    for wish_label, wish in wishes:
        some = sentences
        if (each := entry.get("each")) is not None:
            some = draw.sample(sentences, min(int(each), len(sentences)))
        for sentence_label, sentence in some:
            text = sentence.replace("{x}", wish).replace("{X}", wish[:1].upper() + wish[1:])
            label = entry.get("label", wish_label or sentence_label)
            if not label:
                raise ConfigError(f"{where}: no `label`, and the lists have no keys that could be one")
            group = sentence if entry.get("group") == "text" or not wish else wish
            row = {"text": text, "label": str(label), "group": group}
            yield row | ({"where": entry["where"]} if "where" in entry else {})


def _items(lists: Mapping[str, Any], name: Any, where: str) -> list[tuple[str, str]]:
    """The entries of a list, or of lists by their keys."""
    if (found := lists.get(name)) is None:
        raise ConfigError(f"{where}: there is no list `{name}`; there are {', '.join(map(str, lists))}")
    by_key = found.items() if isinstance(found, dict) else [("", found)]
    return [(str(key), str(one)) for key, several in by_key for one in several or ()]


def counts_of(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows each category has, and how many are harmless."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        for code in row.codes or {SAFE}:
            counts[code] += 1
    return dict(sorted(counts.items()))
