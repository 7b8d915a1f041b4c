"""Documents with too many outlier words: the KL divergence of a document's words from those of the whole corpus.

Two passes: the first counts the words of the corpus by language (in hashed buckets) and measures how far the documents
lie from it; the second drops those that lie much further than others of their length. A short document is always far,
since few words fill few buckets; so the divergence is compared with the median of the corpus's documents of about
that length, and the distance from it is told in units of their scatter (1.4826 median absolute deviations).

Source: the Llama 3 paper, section 3.1.1 ("token-distribution Kullback-Leibler divergence to filter out documents
containing excessive numbers of outlier tokens compared to the training corpus distribution").
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from herd.curate.ngrams import word_numbers, word_spans

NUM_BUCKETS = 1 << 17
_SMOOTHING = 0.1  # added to the count of every bucket
_MAX_SAMPLES = 2000  # documents of a language whose divergence is measured
_MAX_PART_SAMPLES = 200  # of these, from one part of the corpus
_MIN_SAMPLES = 200  # with fewer, a language is not judged
_MAX_POINTS = 12  # lengths at which the usual divergence is told; between them it is interpolated
_DOCUMENTS_PER_POINT = 50
_LEAST_SCATTER = 0.03  # nats
_MAX_WORDS = 1000  # longer documents are judged by their beginning
_MIN_WORDS = 20  # shorter documents are not judged


@dataclass
class WordCounts:
    """The words of some documents of one language, by bucket, and a sample of the documents' own words."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(NUM_BUCKETS, dtype=np.int64))
    samples: list[np.ndarray] = field(default_factory=list)  # each (words,) buckets of one document

    def add(self, text: str) -> None:
        """Count a document."""
        self.add_words(word_numbers(text))

    def add_words(self, numbers: np.ndarray) -> None:
        """Count a document by the numbers of its words, (words,) uint64."""
        buckets = (numbers >> np.uint64(64 - 17)).astype(np.int64)
        np.add.at(self.counts, buckets, 1)
        if len(buckets) >= _MIN_WORDS and len(self.samples) < _MAX_PART_SAMPLES:
            self.samples.append(buckets[:_MAX_WORDS].astype(np.uint32))

    def merge(self, other: WordCounts) -> None:
        """Add what another part of the corpus counted."""
        self.counts += other.counts
        self.samples += other.samples[: _MAX_SAMPLES - len(self.samples)]


def buckets_of(text: str) -> np.ndarray:
    """The bucket of every word of a text, (words,) int64."""
    return (word_numbers(text) >> np.uint64(64 - 17)).astype(np.int64)


class Outliers:
    """The fitted measure of one corpus: `distance` tells how unusual a text is for its language and length."""

    def __init__(self, surprise: dict[str, np.ndarray], curves: dict[str, np.ndarray]):
        self._surprise = surprise  # language -> (buckets,) -log of the share of the corpus
        self._curves = curves  # language -> (3, points), see `_curve`

    @classmethod
    def fit(cls, counted: dict[str, WordCounts]) -> Outliers:
        """Fit to the counts of a corpus; languages with too few documents are left out."""
        surprise, curves = {}, {}
        for language, words in counted.items():
            if len(words.samples) < _MIN_SAMPLES:
                continue
            share = (words.counts + _SMOOTHING) / (words.counts.sum() + _SMOOTHING * NUM_BUCKETS)
            surprise[language] = -np.log(share).astype(np.float32)
            lengths = np.log([len(sample) for sample in words.samples])
            divergence = np.array([_divergence(sample, surprise[language]) for sample in words.samples])
            curves[language] = _curve(lengths, divergence)
        return cls(surprise, curves)

    def distance(self, text: str, language: str) -> float | None:
        """Scatters above what is usual for its length; None where nothing was fitted or the text is too short."""
        if language not in self._curves:
            return None
        buckets = buckets_of(text)[:_MAX_WORDS]
        if len(buckets) < _MIN_WORDS:
            return None
        lengths, usual, scatter = self._curves[language]
        length = np.log(len(buckets))
        above = _divergence(buckets, self._surprise[language]) - np.interp(length, lengths, usual)
        return float(above / np.interp(length, lengths, scatter))

    def rarest_words(self, text: str, language: str, number: int = 5) -> str:
        """The words that are rarest in the corpus: what to show as the reason."""
        spans = word_spans(text)[:_MAX_WORDS]
        surprise = self._surprise[language][buckets_of(text)[: len(spans)]]
        order = np.argsort(-surprise, kind="stable")
        found = dict.fromkeys(text[spans[i][0] : spans[i][1]] for i in order[: 4 * number].tolist())
        return " ".join(list(found)[:number])

    def save(self, path: Path) -> None:
        """Write the fitted arrays."""
        arrays = {f"surprise {language}": array for language, array in self._surprise.items()}
        arrays |= {f"curve {language}": curve for language, curve in self._curves.items()}
        with open(path, "wb") as file:
            np.savez(file, **cast(Any, arrays))

    @classmethod
    def load(cls, path: Path) -> Outliers:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            named = {name: arrays[name] for name in arrays.files}
        surprise = {name[9:]: array for name, array in named.items() if name.startswith("surprise ")}
        curves = {name[6:]: array for name, array in named.items() if name.startswith("curve ")}
        return cls(surprise, curves)


def save_counts(counted: dict[str, WordCounts], path: Path, **others: np.ndarray) -> None:
    """Write the counts of one part of a corpus, and other counts beside them as what is filled and how often."""
    arrays: dict[str, np.ndarray] = {}
    for name, counts in others.items():
        arrays |= {f"{name} filled": np.flatnonzero(counts), f"{name} counts": counts[counts > 0]}
    for language, words in counted.items():
        filled = np.flatnonzero(words.counts)
        arrays[f"{language} filled"] = filled.astype(np.uint32)
        arrays[f"{language} counts"] = words.counts[filled]
        arrays[f"{language} samples"] = np.concatenate(words.samples) if words.samples else np.empty(0, np.uint32)
        arrays[f"{language} lengths"] = np.array([len(sample) for sample in words.samples], dtype=np.int64)
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "wb") as file:
        np.savez(file, **cast(Any, arrays))
    os.replace(aside, path)


def load_counts(paths: Iterable[Path]) -> dict[str, WordCounts]:
    """The counts of several parts together, in the order given."""
    total: dict[str, WordCounts] = {}
    for path in paths:
        with np.load(path) as arrays:
            for language in (name.removesuffix(" samples") for name in arrays.files if name.endswith(" samples")):
                words = WordCounts()
                words.counts[arrays[f"{language} filled"]] = arrays[f"{language} counts"]
                ends = np.cumsum(arrays[f"{language} lengths"])[:-1]
                words.samples = np.split(arrays[f"{language} samples"], ends) if len(ends) + 1 else []
                words.samples = [sample for sample in words.samples if len(sample)]
                total.setdefault(language, WordCounts()).merge(words)
    return total


def _divergence(buckets: np.ndarray, surprise: np.ndarray) -> float:
    """KL divergence, in nats, of the distribution of some words from the corpus."""
    filled, counts = np.unique(buckets, return_counts=True)
    share = counts / len(buckets)
    return float((share * (np.log(share) + surprise[filled])).sum())


def _curve(lengths: np.ndarray, divergence: np.ndarray) -> np.ndarray:
    """What is usual by length: rows of log(length), median divergence and scatter, (3, points), lengths rising."""
    order = np.argsort(lengths, kind="stable")
    points = []
    for group in np.array_split(order, max(1, min(_MAX_POINTS, len(order) // _DOCUMENTS_PER_POINT))):
        x, y = lengths[group], divergence[group]
        slope = np.polyfit(x, y, 1)[0] if np.ptp(x) > 0.05 else 0.0  # within a group length still matters
        level = y - slope * (x - np.median(x))
        center = np.median(level)
        points.append((np.median(x), center, max(1.4826 * np.median(np.abs(level - center)), _LEAST_SCATTER)))
    return np.array(points).T
