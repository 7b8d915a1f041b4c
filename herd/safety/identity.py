"""Words that say who somebody is: how often they stand in texts, and texts with them exchanged for their counterparts.

Source: Lu et al. 2018, counterfactual data augmentation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from herd.config import find_recipe, load, settings


@settings
class Identities:
    """Groups with their words, and words that stand for one another."""

    terms: dict[str, list[str]]
    """Words, or words in a row, by group; case does not count."""
    swaps: list[list[str]]
    """Pairs of words."""

    def __post_init__(self) -> None:
        if any(len(pair) != 2 for pair in self.swaps):
            raise ValueError("swaps: every entry is a pair of words")
        if not self.terms:
            raise ValueError("terms: name at least one group")


def read_identities(file: Path | str) -> Identities:
    """Groups and pairs from a file, or by its place among the shipped ones (`safety/identity.yaml`).

    Raises:
        ConfigError: it is missing, or something else.
    """
    return load(Identities, find_recipe(Path(file)))


class Swapper:
    """Counts and exchanges the words of some identities."""

    def __init__(self, identities: Identities) -> None:
        self._groups = {group: _pattern(words) for group, words in identities.terms.items()}
        self._others = {a.lower(): b.lower() for pair in identities.swaps for a, b in (pair, pair[::-1])}
        self._has_her = {"she", "he"} <= self._others.keys()
        listed = [*self._others, *(("her", "him", "his") if self._has_her else ())]
        self._swapped = _pattern(listed)

    def counts(self, texts: Iterable[str]) -> dict[str, dict[str, int]]:
        """Of each group how often its words stand there, and in how many of the texts."""
        words, documents = Counter[str](), Counter[str]()
        for text in texts:
            for group, pattern in self._groups.items():
                found = len(pattern.findall(text))
                words[group] += found
                documents[group] += bool(found)
        return {group: {"words": words[group], "texts": documents[group]} for group in self._groups}

    def swap(self, text: str) -> str:
        """The text with each word exchanged for its counterpart, its case kept; the same text where it has none.

        `her` becomes `his` before a word and `him` elsewhere, `his` becomes `her` before a word and `hers` elsewhere:
        a rule that is wrong now and then ("I saw her yesterday").
        """
        return self._swapped.sub(lambda hit: _as(hit[0], self._other(hit[0].lower(), text[hit.end() :])), text)

    def _other(self, word: str, rest: str) -> str:
        before_word = bool(re.match(r"\s+[^\W\d_]", rest))
        if self._has_her and word in ("her", "him", "his"):
            return {"her": "his" if before_word else "him", "his": "her" if before_word else "hers"}.get(word, "her")
        return self._others[word]


def swapped_row(row: Mapping[str, Any], swapper: Swapper) -> dict[str, Any]:
    """A row with every text in it swapped, messages and lists included; names of keys stay."""
    return {key: _swapped(value, swapper, key) for key, value in row.items()}


def texts_in(value: Any) -> Iterable[str]:
    """All texts of a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)


def _swapped(value: Any, swapper: Swapper, key: str) -> Any:
    if isinstance(value, str):
        return value if key in ("role", "from", "id", "url", "group", "source") else swapper.swap(value)
    if isinstance(value, Mapping):
        return {name: _swapped(one, swapper, name) for name, one in value.items()}
    return [_swapped(one, swapper, key) for one in value] if isinstance(value, list) else value


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


def _as(model: str, word: str) -> str:
    """A word in the case of another."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
