"""What simple compressors make of the same text: the figures a language model has to beat to have learned anything.

A smoothed trigram over the same tokens, `xz` of the held-out text alone, and `xz` that has seen the training text.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_MAX_XZ_WINDOW_BYTES = 1 << 26  # `xz` needs about eleven times its window in memory


class Trigram:
    """An interpolated Kneser-Ney trigram over token ids, counted with sorted arrays instead of dictionaries.

    Absolute discounts per order, estimated from the counts of counts; continuation counts below the top order; the
    lowest order falls back to a uniform distribution over the vocabulary, so that every token has a probability.

    Source: Chen and Goodman 1998, interpolated Kneser-Ney.
    """

    def __init__(self, documents: Iterable[Sequence[int] | np.ndarray], vocab_size: int, bos_id: int):
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        first, second, third = self._triples(documents)
        v = np.uint64(vocab_size)
        trigrams, counts = np.unique((first * v + second) * v + third, return_counts=True)
        self._three = _Level(trigrams, counts, v)
        bigrams, continuations = np.unique(trigrams % (v * v), return_counts=True)  # how many tokens come before a pair
        self._two = _Level(bigrams, continuations, v)
        unigrams, continuations = np.unique(bigrams % v, return_counts=True)
        self._one = _Level(unigrams, continuations, v)

    def log2_probabilities(self, document: Sequence[int]) -> np.ndarray:
        """(T,) log2 of the probability of each token of a document, given the two before it (BOS before the first)."""
        first, second, third = self._triples([document])
        return np.log2(self.probabilities(first, second, third))

    def probabilities(self, first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
        """(T,) p(third | first, second)."""
        v = np.uint64(self.vocab_size)
        p = np.full(third.shape, 1.0 / self.vocab_size)
        p = self._one.interpolate(np.zeros_like(third), third, p)
        p = self._two.interpolate(second, third, p)
        return self._three.interpolate(first * v + second, third, p)

    def bits_per_byte(self, documents: Iterable[Sequence[int] | np.ndarray], num_bytes: int) -> float:
        """Code length of the documents in bits, divided by the bytes of their text."""
        first, second, third = self._triples(documents)
        return float(-np.log2(self.probabilities(first, second, third)).sum() / max(num_bytes, 1))

    def _triples(self, documents: Iterable[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every token with the two before it; two BOS stand before the first token of each document."""
        bos = np.array([self.bos_id, self.bos_id], dtype=np.uint64)
        parts = [part for document in documents for part in (bos, np.asarray(document, dtype=np.uint64))]
        tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
        if len(tokens) < 3:
            return (np.empty(0, dtype=np.uint64),) * 3
        lengths = np.array([len(part) for part in parts])
        padding = np.zeros(len(tokens), dtype=bool)
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])[::2]
        padding[starts] = padding[starts + 1] = True
        keep = ~padding[2:]
        return tokens[:-2][keep], tokens[1:-1][keep], tokens[2:][keep]


class _Level:
    """One order of the model: counts of (history, token), their sums and distinct followers per history."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, vocab_size: np.uint64):
        self.keys, self.counts, self.vocab_size = keys, counts.astype(np.float64), vocab_size
        histories, starts = np.unique(keys // vocab_size, return_index=True)
        self.histories = histories
        self.totals = np.add.reduceat(self.counts, starts) if len(starts) else np.empty(0)
        self.followers = np.diff(np.append(starts, len(keys))).astype(np.float64)
        ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
        self.discount = ones / (ones + 2 * twos) if ones and twos else 0.5

    def interpolate(self, history: np.ndarray, token: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Discounted count over the history's total, plus the freed mass times the lower order."""
        counts = _lookup(self.keys, self.counts, history * self.vocab_size + token)
        totals = _lookup(self.histories, self.totals, history)
        followers = _lookup(self.histories, self.followers, history)
        seen = totals > 0
        safe = np.where(seen, totals, 1.0)
        mixed = np.maximum(counts - self.discount, 0.0) / safe + self.discount * followers / safe * lower
        return np.where(seen, mixed, lower)


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` at the places of `wanted` in the sorted `keys`, 0 where absent."""
    if not len(keys):
        return np.zeros(len(wanted))
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0.0)


# ---- xz --------------------------------------------------------------------------------------------------------------


def xz_bits_per_byte(texts: Sequence[bytes], *, preset: int = 6) -> float:
    """Size of the joined texts under `xz` alone, in bits per byte of text."""
    data = _joined(texts)
    return 8 * _xz_size([data], preset) / len(data) if data else math.nan


def xz_bits_per_byte_given(
    known: Sequence[bytes], texts: Mapping[str, Sequence[bytes]], *, preset: int = 6
) -> dict[str, float]:
    """What each group of texts adds to `xz` of the known texts, in bits per byte: with the training text in view."""
    before = _joined(known)
    parts = {name: _joined(group) for name, group in texts.items()}
    with ThreadPoolExecutor(2) as pool:  # lzma releases the interpreter lock
        alone = pool.submit(_xz_size, [before], preset)
        both = {name: pool.submit(_xz_size, [before, data], preset) for name, data in parts.items()}
        added = {name: both[name].result() - alone.result() for name in parts}
    return {name: 8 * added[name] / len(data) if data else math.nan for name, data in parts.items()}


def _joined(texts: Sequence[bytes]) -> bytes:
    return b"\n".join(texts)


def _xz_size(parts: Sequence[bytes], preset: int) -> int:
    """Compressed size, with a window that holds everything (up to a limit)."""
    window = min(max(1 << sum(map(len, parts)).bit_length(), 1 << 16), _MAX_XZ_WINDOW_BYTES)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": window}]
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters)
    return sum(len(compressor.compress(part)) for part in parts) + len(compressor.flush())
