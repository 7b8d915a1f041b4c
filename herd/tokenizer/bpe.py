"""Byte-level BPE training: count pre-tokens in a stream of texts, then merge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import regex

from herd.tokenizer.merges import learn_merges
from herd.tokenizer.specials import SPLIT_PATTERN
from herd.tokenizer.workers import Workers, in_parts, num_cores

NUM_BYTES = 256
_BATCH_CHARS = 1_000_000
_ALONE_BATCHES = 6  # counted in this process; a longer stream is worth starting others for

_split = regex.compile(SPLIT_PATTERN).findall

# The same pattern for ASCII text: twice as fast, since no Unicode property has to be looked up.
_split_ascii = re.compile(
    r"'(?:[sdmtSDMT]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n0-9A-Za-z]?[A-Za-z]+|[0-9]{1,3}"
    r"| ?[^\s0-9A-Za-z]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.ASCII,
).findall
_line_ends = re.compile(r"\n(?=\S)")


@dataclass
class PretokenCounts:
    """How often each pre-token occurs in the texts seen so far."""

    words: Counter[str] = field(default_factory=Counter)
    num_texts: int = 0
    shortfall: int = 0
    """No count is short by more than this; above 0 only when the memory limit made it forget rare pre-tokens."""

    def add(self, words: Counter[str], num_texts: int, max_distinct: int) -> None:
        """Count more; while there are more than `max_distinct` distinct ones, forget the rarest down to half.

        Source: lossy counting, Manku and Motwani 2002.
        """
        self.words.update(words)
        self.num_texts += num_texts
        if len(self.words) > max_distinct:
            floor = sorted(self.words.values(), reverse=True)[max_distinct // 2]
            self.words = Counter({word: count for word, count in self.words.items() if count > floor})
            self.shortfall += floor


def count_pretokens(
    texts: Iterable[str],
    *,
    counts: PretokenCounts | None = None,
    max_distinct: int = 4_000_000,
    after_batch: Callable[[PretokenCounts], object] = lambda counts: None,
) -> PretokenCounts:
    """Count the pre-tokens of a stream of texts, on all cores once the stream is long.

    `counts` continues an earlier count (give the texts that follow it). The result depends on the texts alone.
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
    words: Counter[str] = Counter()
    for text in texts:
        if text.isascii():
            words.update(_split_ascii(text))
        else:
            _count_mixed(text, words)
    return words, len(texts)


def _count_mixed(text: str, words: Counter[str]) -> None:
    """Count a text that is not all ASCII: its ASCII lines by the fast pattern.

    Between a line break and what is not whitespace there is always a cut, so lines may be counted in any order.
    """
    *lines, last = _line_ends.split(text)
    ascii_lines = [line for line in lines if line.isascii()]
    if ascii_lines:
        words.update(_split_ascii("\n".join(ascii_lines) + "\n"))
    if len(ascii_lines) < len(lines):
        words.update(_split("\n".join(line for line in lines if not line.isascii()) + "\n"))
    words.update(_split(last))


def reference_count(texts: Iterable[str]) -> Counter[str]:
    """The same as `count_pretokens` without a memory limit, said in one line."""
    return Counter(word for text in texts for word in _split(text))


def train(
    counts: Mapping[str, int], vocab_size: int, advance: Callable[[int], object] = lambda merges: None
) -> dict[bytes, int]:
    """The ranks (bytes of a token -> id) of up to `vocab_size` tokens: the 256 bytes, then one for each merge."""
    words = {word.encode("utf-8", "replace"): count for word, count in counts.items()}
    tokens = [bytes([b]) for b in range(NUM_BYTES)]
    for left, right in learn_merges(
        list(words), list(words.values()), [1] * NUM_BYTES, vocab_size - NUM_BYTES, advance
    ):
        tokens.append(tokens[left] + tokens[right])
    return {token: rank for rank, token in enumerate(tokens)}
