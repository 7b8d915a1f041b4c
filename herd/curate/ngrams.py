"""Words as 64-bit numbers, many at a time: what outliers, decontamination and the small classifiers count.

A word is a run of letters and digits in lower case. In scripts that put no spaces between words every character stands
alone and counts as a part of one: half of a word in Chinese and Japanese, a quarter in Thai, Lao, Khmer and Burmese. An
n-gram of words is then as many characters as make up n words, whatever scripts they are mixed of.

The number of a word is a polynomial of its characters modulo
2^64 (Karp and Rabin 1987), taken for all words at once from running sums, then mixed. Numbers are the same everywhere.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_CHUNK_CHARACTERS = 1 << 17  # small enough to stay in the processor's cache
_NUM_CODES = 0x32000  # above lie private use and unassigned planes: no words
_SPACELESS = [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF)]
_SPACELESS += [(0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x31FFF)]
SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _SPACELESS)
"""The scripts without spaces, as the inside of a regular expression's class."""
CHARACTERS_PER_WORD = {"zh": 2, "ja": 2, "th": 4, "lo": 4, "km": 4, "my": 4}
"""Languages that put no spaces between words, and how many characters make up a word on average."""
WORD_WEIGHT = 4
"""What a whole word weighs; a character that stands alone weighs as much less as more of them make up a word."""
_QUARTERS_END = 0x2000  # the scripts below it have four characters to a word, those above two
_SPACED_OR_ALONE = re.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")
_OTHER, _WORD, _ALONE = 0, 1, 2


class Words(NamedTuple):
    """The words of a text in order."""

    numbers: np.ndarray  # (words,) uint64
    weights: np.ndarray  # (words,) int64, `WORD_WEIGHT` for a whole word


def split_words(text: str, language: str = "") -> list[str]:
    """What spaces part, with punctuation; in languages without spaces, characters by themselves."""
    return _SPACED_OR_ALONE.findall(text) if language in CHARACTERS_PER_WORD else text.split()


def weighed_words(text: str) -> Words:
    """The numbers of a text's words, and what each weighs by its script."""
    numbers = word_numbers(text)
    if text.isascii():
        return Words(numbers, np.full(len(numbers), WORD_WEIGHT, dtype=np.int64))
    weights = [_chunk_weights(chunk) for chunk in _chunks(text)]
    return Words(numbers, np.concatenate(weights) if weights else np.empty(0, dtype=np.int64))


def weighed_ngrams(words: Words, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One number for each n words in a row by weight, and where it ends: (m,) uint64 and (m,) int64.

    The first begins at the first word, the next at the second and so on, as long as n words' weight is left.
    """
    ends = np.concatenate([[0], np.cumsum(words.weights)])
    stop = np.searchsorted(ends, ends[:-1] + WORD_WEIGHT * n)
    count = int((stop <= len(words.numbers)).sum())
    stop = stop[:count]
    powers, inverses = _powers(max(len(words.numbers), _CHUNK_CHARACTERS))
    sums = np.zeros(len(words.numbers) + 1, dtype=np.uint64)
    np.cumsum(words.numbers * powers[: len(words.numbers)], out=sums[1:])
    return _mixed(
        (sums[stop] - sums[:count]) * inverses[:count] + stop.astype(np.uint64) - np.arange(count, dtype=np.uint64)
    ), stop


def word_numbers(text: str) -> np.ndarray:
    """The words of a text in order, (words,) uint64."""
    parts = [_chunk_numbers(chunk) for chunk in _chunks(text)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def ngram_numbers(words: np.ndarray, n: int) -> np.ndarray:
    """One number for each n words in a row, (words - n + 1,) uint64; empty where there are fewer words."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    numbers = words[:count].copy()
    for i in range(1, n):
        numbers *= np.uint64(_BASE)
        numbers += words[i : i + count]
    return _mixed(numbers)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words that `word_numbers` counts stand: start and end in characters."""
    spans: list[tuple[int, int]] = []
    offset = 0
    for chunk in _chunks(text):
        codes = _codes(chunk)
        starts, ends = _bounds(_kinds()[np.minimum(codes, _NUM_CODES)])
        spans += zip((starts + offset).tolist(), (ends + offset).tolist(), strict=True)
        offset += len(chunk)
    return spans


def word_capitals(text: str) -> np.ndarray:
    """Which of the words that `word_numbers` counts begin with a capital letter, (words,) bool."""
    found = [_chunk_capitals(chunk) for chunk in _chunks(text)]
    return np.concatenate(found) if found else np.empty(0, dtype=bool)


def _chunks(text: str) -> Iterator[str]:
    """The text in pieces that end at white space (or, in a run without any, anywhere)."""
    start = 0
    while start < len(text):
        end = start + _CHUNK_CHARACTERS
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space + 1 if space > start else end
        yield text[start:end]
        start = end


def _chunk_weights(chunk: str) -> np.ndarray:
    codes = _codes(chunk.lower())
    kinds = _kinds()[np.minimum(codes, _NUM_CODES)]
    starts, _ = _bounds(kinds)
    alone = np.where(codes[starts] < _QUARTERS_END, WORD_WEIGHT // 4, WORD_WEIGHT // 2)
    return np.where(kinds[starts] == _ALONE, alone, WORD_WEIGHT)


def _chunk_capitals(chunk: str) -> np.ndarray:
    lower = chunk.lower()
    starts, _ = _bounds(_kinds()[np.minimum(_codes(lower), _NUM_CODES)])
    if len(lower) != len(chunk):  # a few capitals have two small letters: their places do not fit
        return np.zeros(len(starts), dtype=bool)
    return _codes(chunk)[starts] != _codes(lower)[starts]


def _codes(chunk: str) -> np.ndarray:
    return np.frombuffer(chunk.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _chunk_numbers(chunk: str) -> np.ndarray:
    lower = chunk.lower()
    codes = _codes(lower)
    starts, ends = _bounds(_kinds()[np.minimum(codes, _NUM_CODES)])
    powers, inverses = _powers(max(len(codes), _CHUNK_CHARACTERS))
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])
    return _mixed((sums[ends] - sums[starts]) * inverses[starts])


def _bounds(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every word from its characters' kinds."""
    inside = kinds == _WORD
    alone = kinds == _ALONE
    before = np.empty(len(kinds), dtype=bool)
    before[:1], before[1:] = False, inside[:-1]
    after = np.empty(len(kinds), dtype=bool)
    after[-1:], after[:-1] = False, inside[1:]
    return np.flatnonzero((inside & ~before) | alone), np.flatnonzero((inside & ~after) | alone) + 1


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Spread numbers over all bits (the finalizer of MurmurHash3)."""
    numbers = numbers ^ (numbers >> np.uint64(33))
    numbers *= np.uint64(0xFF51AFD7ED558CCD)
    numbers ^= numbers >> np.uint64(33)
    numbers *= np.uint64(0xC4CEB9FE1A85EC53)
    numbers ^= numbers >> np.uint64(33)
    return numbers


@functools.cache
def _kinds() -> np.ndarray:
    """For every code point whether it is part of a word, a word alone, or neither."""
    kinds = np.where(np.char.isalnum(np.arange(_NUM_CODES, dtype=np.uint32).view("U1")), _WORD, _OTHER).astype(np.uint8)
    for first, last in _SPACELESS:
        block = kinds[first : last + 1]
        block[block == _WORD] = _ALONE
    for first, last in ((0x0300, 0x036F), (0x0900, 0x0DFF), (0x0591, 0x05C7), (0x064B, 0x065F)):
        kinds[first : last + 1] = _WORD  # marks that belong to the letter before them
    return np.append(kinds, np.uint8(_OTHER))


@functools.lru_cache(maxsize=2)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base and of its inverse modulo 2^64."""
    tables = []
    for base in (_BASE, _INVERSE):
        table = np.full(length, base, dtype=np.uint64)
        table[:1] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]
