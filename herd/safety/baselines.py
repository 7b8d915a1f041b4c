"""What a guard must beat to be worth its milliseconds: a list of words, and words weighed by TF-IDF."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

_WORD = re.compile(r"[^\W_]+")
_LISTED = 100  # words of a list that is found in the rows
_LEAST = 2  # rows that a word stands in


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class Keywords:
    """How many words of a list stand in a text, as a share of its words."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = frozenset(word.lower() for word in words)

    @classmethod
    def of_rows(cls, texts: Sequence[str], unsafe: Sequence[bool]) -> Keywords:
        """The words that speak most for a harmful text: by log odds, of those in two harmful rows or more."""
        counts = {True: Counter[str](), False: Counter[str]()}
        for text, is_unsafe in zip(texts, unsafe, strict=True):
            counts[bool(is_unsafe)].update(set(_words(text)))
        rows = {True: sum(map(bool, unsafe)), False: len(unsafe) - sum(map(bool, unsafe))}

        def odds(word: str) -> float:
            return math.log((counts[True][word] + 0.5) / (rows[True] + 1)) - math.log(
                (counts[False][word] + 0.5) / (rows[False] + 1)
            )

        known = [word for word, count in counts[True].items() if count >= _LEAST and len(word) > 2]
        return cls(sorted(known, key=lambda word: (-odds(word), word))[:_LISTED])

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) 0 to 1."""
        found = [_words(text) for text in texts]
        return np.array([sum(word in self.words for word in words) / max(len(words), 1) for words in found])


class TfIdf:
    """Logistic regression on words and pairs of words weighed by TF-IDF, as scikit-learn's pipeline of that name.

    Term counts are dampened (1 + log), rows have length 1, both classes count alike.
    """

    def __init__(self, texts: Sequence[str], unsafe: Sequence[bool], *, decay: float = 1e-5, max_steps: int = 100):
        rows = [_terms(text) for text in texts]
        seen = Counter(term for row in rows for term in row)
        kept = sorted(term for term, count in seen.items() if count >= _LEAST) or sorted(seen)
        self._places = {term: place for place, term in enumerate(kept)}
        weights = [math.log((1 + len(rows)) / (1 + seen[term])) + 1 for term in kept]
        self._idf = torch.tensor(weights, dtype=torch.float32)
        table, wanted = self._table(rows), torch.tensor([float(one) for one in unsafe])
        weight = torch.zeros(len(kept), requires_grad=True)
        bias = torch.zeros(1, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=max_steps, line_search_fn="strong_wolfe")
        share = torch.where(wanted > 0, 0.5 / wanted.sum(), 0.5 / (1 - wanted).sum())

        def loss() -> torch.Tensor:
            solver.zero_grad()
            outputs = torch.mv(table, weight) + bias
            value = F.binary_cross_entropy_with_logits(outputs, wanted, share, reduction="sum")
            value = value + decay * weight.square().sum()
            value.backward()
            return value

        solver.step(loss)
        self._weight, self._bias = weight.detach(), bias.detach()

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) 0 to 1."""
        table = self._table([_terms(text) for text in texts])
        return (torch.mv(table, self._weight) + self._bias).sigmoid().numpy()

    def _table(self, rows: Sequence[Counter[str]]) -> torch.Tensor:
        places, values = [], []
        for number, row in enumerate(rows):
            known = [(self._places[term], 1 + math.log(count)) for term, count in row.items() if term in self._places]
            weighed = [(place, value * float(self._idf[place])) for place, value in known]
            length = math.sqrt(sum(value * value for _, value in weighed)) or 1.0
            places += [(number, place) for place, _ in weighed]
            values += [value / length for _, value in weighed]
        index = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
        shape = (len(rows), len(self._places))
        return torch.sparse_coo_tensor(index, torch.tensor(values), shape, check_invariants=True).coalesce()


def _terms(text: str) -> Counter[str]:
    words = _words(text)
    return Counter([*words, *map(" ".join, pairwise(words))])
