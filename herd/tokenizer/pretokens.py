"""Counting pre-tokens in a stream of texts, from which byte-level BPE learns its merges.

Counting processes import only this module, which does not need NumPy and starts quickly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

import regex

from herd.tokenizer.specials import SPLIT_PATTERN
from herd.tokenizer.workers import Workers, in_parts, num_cores

_BATCH_CHARS = 1_000_000
_ALONE_BATCHES = 2  # counted in this process; only longer streams justify starting others
_LONG_CHARS = 64  # a pre-token counts once more toward the memory limit for every 64 characters

_split = regex.compile(SPLIT_PATTERN).findall
# The pattern always splits after a line break before non-whitespace, and before a space before non-whitespace.
_line_ends = re.compile(r"\n(?=\S)")
_word_starts = re.compile(r" (?=\S)")


@dataclass
class PretokenCounts:
    """Counts of pre-tokens in the texts so far."""

    words: Counter[str] = field(default_factory=Counter)
    num_texts: int = 0
    shortfall: int = 0
    """The largest error of a count; above 0 only if rare pre-tokens were dropped because of the memory limit."""

    def __post_init__(self) -> None:
        self._size = sum(map(_size, self.words))

    def add(self, words: Counter[str], num_texts: int, max_distinct: int) -> None:
        """Add counts; if there are more than `max_distinct` distinct pre-tokens, drop the rarest down to half.

        Source: lossy counting, Manku and Motwani 2002.
        """
        known = self.words
        get = known.get
        for word, count in words.items():
            if (before := get(word)) is None:
                known[word] = count
                self._size += _size(word)
            else:
                known[word] = before + count
        self.num_texts += num_texts
        if self._size > max_distinct:
            self._forget_rarest(max_distinct // 2)

    def _forget_rarest(self, size: int) -> None:
        """Keep the most frequent pre-tokens that fit into `size`; equally frequent ones stay or go together."""
        kept = 0
        sizes: Counter[int] = Counter()
        for word, count in self.words.items():
            sizes[count] += _size(word)
        for floor in sorted(sizes, reverse=True):
            kept += sizes[floor]
            if kept > size:
                break
        self.words = Counter({word: count for word, count in self.words.items() if count > floor})
        self._size = kept - sizes[floor]
        self.shortfall += floor


def _size(word: str) -> int:
    return 1 + len(word) // _LONG_CHARS


def count_pretokens(
    texts: Iterable[str],
    *,
    counts: PretokenCounts | None = None,
    max_distinct: int = 4_000_000,
    after_batch: Callable[[PretokenCounts], object] = lambda counts: None,
) -> PretokenCounts:
    """Count the pre-tokens of a stream of texts, on all cores if the stream is long.

    `counts` continues an earlier count, with the texts after it. The result depends only on the texts. It is exact up
    to `max_distinct` distinct pre-tokens (ones above 64 characters count as several); see `PretokenCounts.shortfall`.
    """
    counts = counts or PretokenCounts()
    batches = in_parts(texts, _BATCH_CHARS)
    workers = None
    try:
        for number, batch in enumerate(batches):
            if number == _ALONE_BATCHES and num_cores() > 1:
                workers = Workers(_count_batch)
                rest = workers.map(chain([batch], batches))
                break
            counts.add(*_count_batch(batch), max_distinct)
            after_batch(counts)
        else:
            rest = iter(())
        for words, num_texts in rest:
            counts.add(words, num_texts, max_distinct)
            after_batch(counts)
    finally:
        if workers:
            workers.close()
    return counts


def _count_batch(texts: Sequence[str]) -> tuple[Counter[str], int]:
    split = _fast_split()
    words: Counter[str] = Counter()
    for text in chain.from_iterable(map(_bounded, texts)):
        if _in_basic_plane(text):
            words.update(split(text))
            continue
        *lines, last = _line_ends.split(text)  # lines may be counted in any order
        basic = [line for line in lines if _in_basic_plane(line)]
        other = [line for line in lines if not _in_basic_plane(line)]
        words.update(split("\n".join([*basic, ""])))
        words.update(_split("\n".join([*other, ""])))
        words.update(_split(last))
    return words, len(texts)


def _bounded(text: str) -> Iterator[str]:
    """A text in pieces of at most a few megabytes, split before words, to bound memory."""
    begin = 0
    while len(text) - begin > _BATCH_CHARS:
        cut = _word_starts.search(text, begin + _BATCH_CHARS, begin + 2 * _BATCH_CHARS)
        end = cut.start() if cut else begin + 2 * _BATCH_CHARS
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _in_basic_plane(text: str) -> bool:
    return text.isascii() or len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)


@cache
def _fast_split() -> Callable[[str], list[str]]:
    """The split pattern for text of the Unicode basic plane (no emoji): twice as fast.

    Python's `re` has no `\\p`; with the classes written out it uses one bitmap.
    """
    plane = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    letter, number, space = (
        "".join(rf"\u{ord(run[0]):04x}-\u{ord(run[-1]):04x}" for run in regex.findall(f"{name}+", plane))
        for name in (r"\p{L}", r"\p{N}", r"\s")
    )
    return re.compile(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{letter}{number}]?[{letter}]+|[{number}]{{1,3}}"
        rf"| ?[^{space}{letter}{number}]+[\r\n]*|[{space}]*[\r\n]+|[{space}]+(?![^{space}])|[{space}]+"
    ).findall


def reference_count(texts: Iterable[str]) -> Counter[str]:
    """The reference for `count_pretokens`, without a memory limit."""
    return Counter(word for text in texts for word in _split(text))
