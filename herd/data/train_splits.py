"""Whether a source contains the training rows of a benchmark, by common n-grams of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from herd.data.ngrams import ngram_numbers
from herd.data.shards import Documents

_RUN = 13  # tokens in a row, as the paper's own contamination analysis takes 8 to 13
_HELD = 0.5  # of a row's runs, above which the row is thought to be in the source


def rows_held(documents: Documents, rows: Sequence[Sequence[int] | np.ndarray]) -> float:
    """The share (0 to 1) of rows, given as tokens, of which at least half the runs of 13 tokens stand in a source."""
    numbers = [np.unique(ngram_numbers(np.asarray(row, np.uint32), _RUN)) for row in rows]
    numbers = [one for one in numbers if len(one)]
    if not numbers:
        return 0.0
    wanted = np.unique(np.concatenate(numbers))
    seen = np.zeros(len(wanted), bool)
    for document in range(len(documents)):
        found = np.unique(ngram_numbers(documents.tokens(document), _RUN))
        places = np.searchsorted(wanted, found)
        places[places == len(wanted)] = 0
        seen[places[wanted[places] == found]] = True
    return float(np.mean([seen[np.searchsorted(wanted, one)].mean() >= _HELD for one in numbers]))


def holders(
    sources: Mapping[str, Documents], mixed: Iterable[str], splits: Mapping[str, Sequence[Sequence[int]]], share: float
) -> list[tuple[str, str, float]]:
    """(source, split, share of its rows) for each of the `mixed` sources that holds more than `share` of a split."""
    pairs = [(name, split) for name in mixed for split in splits]
    found = [(name, split, rows_held(sources[name], splits[split])) for name, split in pairs]
    return [one for one in found if one[2] > share]
