"""Which words there are, by how common they are; and where a run of letters falls into words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")
_LONGEST = 20
_UNKNOWN = 25.0  # nats that a letter costs which belongs to no word


class Words:
    """Known words, the most common first; those of one letter are `a` and `i`."""

    def __init__(self, words: Iterable[str]) -> None:
        alphabetic = (word for word in words if word.isalpha() and (len(word) > 1 or word in "ai"))
        self._ranks = {word: rank for rank, word in enumerate(dict.fromkeys(alphabetic))}
        size = max(len(self._ranks), 2)
        self._costs = {word: math.log((rank + 2) * math.log(size + 2)) for word, rank in self._ranks.items()}

    def __contains__(self, word: str) -> bool:
        return word in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    def rank(self, word: str) -> int:
        """Its place by frequency, behind all others if it is unknown."""
        return self._ranks.get(word, len(self._ranks))

    def share(self, text: str) -> float:
        """Of the letters of a text, those that stand in known words of two letters or more (0 to 1)."""
        found = _WORD.findall(text.lower())
        letters = sum(map(len, found))
        return sum(len(word) for word in found if len(word) > 1 and word in self._ranks) / letters if letters else 0.0

    def cut(self, letters: str) -> list[str]:
        """The likeliest words that a run of letters is made of, each as common as its rank (Zipf's law)."""
        lower = letters.lower()
        costs, begins = [0.0], [0]
        for end in range(1, len(lower) + 1):
            ways = [
                (costs[begin] + self._costs.get(lower[begin:end], _UNKNOWN * (end - begin)), begin)
                for begin in range(max(0, end - _LONGEST), end)
            ]
            cost, begin = min(ways)
            costs.append(cost)
            begins.append(begin)
        parts, end = [], len(lower)
        while end:
            parts.append(letters[begins[end] : end])
            end = begins[end]
        return parts[::-1]
