"""Heuristic filters. Each is a function of a text that returns the reason to drop it and the figure behind it, or None.

Adding one takes a function and a line in `WEB_FILTERS` or `TECHNICAL_FILTERS`.

Sources: Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020, section 2.2), FineWeb (Penedo et al. 2024, section
3.6). Technical pages, code, documentation and mathematics, break nearly every rule made for prose (few sentences end in
full stops, many words are no words), so they are held to length and repetition alone.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

import numpy as np

Reason = tuple[str, str]
"""Why a document is dropped: the rule's name and the figure that broke it."""

_WORD = re.compile(r"\S+")
_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
_BULLETS = ("•", "‣", "►", "▶", "◦", "-", "*", "·", "●", "–")
_END_MARKS = (".", "!", "?", '"', "'", "”", "’", "…", "。", "！", "？", "।", "ฯ", "؟", ":")
_CODE_LINE = re.compile(
    r"[{};]\s*$|^\s*(?:def |class |import |from \S+ import|return\b|if .*:$|for .*:$|while .*:$|#include|>>> |\$ |@\w+|"
    r"(?:public|private|static|const|let|var|function|fn|func)\s)|\w\([^)]*\)\s*(?:[;{:]|->|$)|^\s*[\w.\[\]]+\s*[-+*/|&]?=\s*\S"
)
_TEX = re.compile(r"\$[^$\n]{1,400}\$|\\[a-zA-Z]{2,}")


class Text:
    """A text with the measures that several filters share, each computed once."""

    def __init__(self, text: str, language: str = "en"):
        self.text = text
        self.language = language

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without white space at their ends."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def word_ids(self) -> np.ndarray:  # (words,) int64
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(word.lower(), len(numbers)) for word in self.words], dtype=np.int64)

    @cached_property
    def word_lengths(self) -> np.ndarray:  # (words,) characters
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))


def is_technical(text: str) -> bool:
    """Whether code or formulas make up a fair part of a text."""
    lines = [line for line in text[:100_000].split("\n") if line.strip()]
    if not lines:
        return False
    code = sum(1 for line in lines if _CODE_LINE.search(line))
    formulas = sum(len(match) for match in _TEX.findall(text[:100_000]))
    return code / len(lines) >= 0.2 or formulas / min(len(text), 100_000) >= 0.05


# ---- Gopher: quality -------------------------------------------------------------------------------------------------


def gopher_word_count(text: Text, least: int = 50, most: int = 100_000) -> Reason | None:
    """Drop pages outside 50 to 100,000 words. Scripts without spaces between words are counted by characters."""
    count = len(text.words)
    if text.language in ("th", "zh", "ja", "lo", "km", "my"):
        count = len(text.text) // 4
    if least <= count <= most:
        return None
    return "gopher_word_count", f"{count} words"


def gopher_word_length(text: Text) -> Reason | None:
    """Drop pages whose mean word length is outside 3 to 10 characters."""
    if text.language in ("th", "zh", "ja", "lo", "km", "my") or not text.words:
        return None
    mean = float(text.word_lengths.mean())
    return None if 3 <= mean <= 10 else ("gopher_word_length", f"mean {mean:.1f} characters")


def gopher_symbols(text: Text) -> Reason | None:
    """Drop pages with more than one hash or ellipsis to ten words."""
    words = max(1, len(text.words))
    for name, symbols in (("#", ("#",)), ("...", ("...", "…"))):
        share = sum(text.text.count(symbol) for symbol in symbols) / words
        if share > 0.1:
            return "gopher_symbols", f"{share:.2f} {name} per word"
    return None


def gopher_bullets(text: Text) -> Reason | None:
    """Drop pages where over 90 % of the lines start with a bullet."""
    share = _share(text.lines, lambda line: line.startswith(_BULLETS))
    return None if share <= 0.9 else ("gopher_bullets", f"{share:.0%} of lines")


def gopher_ellipses(text: Text) -> Reason | None:
    """Drop pages where over 30 % of the lines end in an ellipsis."""
    share = _share(text.lines, lambda line: line.endswith(("...", "…")))
    return None if share <= 0.3 else ("gopher_ellipses", f"{share:.0%} of lines")


def gopher_letters(text: Text) -> Reason | None:
    """Drop pages where fewer than 80 % of the words hold a letter."""
    share = _share(text.words, lambda word: any(map(str.isalpha, word)))
    return None if share >= 0.8 else ("gopher_letters", f"{share:.0%} of words")


def gopher_stop_words(text: Text) -> Reason | None:
    """Drop English pages with fewer than two of eight common words."""
    if text.language != "en":
        return None
    found = _STOP_WORDS.intersection(map(str.lower, text.words))
    return None if len(found) >= 2 else ("gopher_stop_words", f"{len(found)} of {len(_STOP_WORDS)} common words")


# ---- Gopher: repetition ----------------------------------------------------------------------------------------------


def gopher_repeated_lines(text: Text) -> Reason | None:
    """Drop pages where repeated lines are over 30 % of the lines or 20 % of the characters."""
    lines = text.lines
    if not lines:
        return None
    repeats = [line for line, count in Counter(lines).items() for _ in range(count - 1)]
    by_count = len(repeats) / len(lines)
    by_size = sum(map(len, repeats)) / max(1, sum(map(len, lines)))
    if by_count > 0.3:
        return "gopher_repeated_lines", f"{by_count:.0%} of lines"
    return ("gopher_repeated_lines", f"{by_size:.0%} of characters") if by_size > 0.2 else None


def gopher_top_ngram(text: Text) -> Reason | None:
    """Drop pages where the commonest 2-, 3- or 4-gram covers over 20, 18 or 16 % of the characters."""
    for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16)):
        keys = _ngram_keys(text.word_ids, n)
        if len(keys) == 0:
            return None
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        top = int(counts.argmax())
        if counts[top] < 2:
            continue
        length = int(text.word_lengths[first[top] : first[top] + n].sum())
        share = length * int(counts[top]) / max(1, int(text.word_lengths.sum()))
        if share > limit:
            span = " ".join(text.words[first[top] : first[top] + n])
            return "gopher_top_ngram", f"{n}-gram {span!r} is {share:.0%} of the characters"
    return None


def gopher_repeated_ngrams(text: Text) -> Reason | None:
    """Drop pages where repeated 5- to 10-grams cover over 15 to 10 % of the characters (logs, spun text)."""
    for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        share = repeated_ngram_share(text, n)
        if share > limit:
            return "gopher_repeated_ngrams", f"repeated {n}-grams cover {share:.0%} of the characters"
    return None


def repeated_ngram_share(text: Text, n: int) -> float:
    """Share of the characters that lie in an n-gram of words which has stood before on the page."""
    keys = _ngram_keys(text.word_ids, n)
    if len(keys) == 0:
        return 0.0
    _, first = np.unique(keys, return_index=True)
    repeated = np.ones(len(keys), dtype=bool)
    repeated[first] = False
    covered = np.zeros(len(text.word_ids) + 1, dtype=np.int64)
    np.add.at(covered, np.flatnonzero(repeated), 1)
    np.add.at(covered, np.flatnonzero(repeated) + n, -1)
    inside = covered.cumsum()[:-1] > 0
    return float(text.word_lengths[inside].sum() / max(1, text.word_lengths.sum()))


def _ngram_keys(ids: np.ndarray, n: int) -> np.ndarray:
    """One 64-bit key for each n-gram of word ids."""
    count = len(ids) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    keys = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + count].astype(np.uint64) + np.uint64(1)
    return keys


# ---- C4 and FineWeb --------------------------------------------------------------------------------------------------


def c4_placeholder(text: Text) -> Reason | None:
    """Drop pages with filler text or that only ask for JavaScript."""
    head = text.text[:5000].lower()
    if "lorem ipsum" in head:
        return "c4_placeholder", "lorem ipsum"
    if len(text.words) < 200 and ("enable javascript" in head or "javascript is disabled" in head):
        return "c4_placeholder", "asks for JavaScript"
    return None


def c4_curly_bracket(text: Text) -> Reason | None:
    """Drop prose pages with curly brackets in it (leaked code); technical pages are exempt from this."""
    count = text.text.count("{")
    return None if count * 200 <= len(text.words) or count < 3 else ("c4_curly_bracket", f"{count} brackets")


def fineweb_line_ends(text: Text) -> Reason | None:
    """Drop pages where under 12 % of the lines end in punctuation."""
    share = _share(text.lines, lambda line: line.endswith(_END_MARKS))
    return None if share >= 0.12 or text.language == "th" else ("fineweb_line_ends", f"{share:.0%} of lines")


def fineweb_short_lines(text: Text) -> Reason | None:
    """Drop pages where over 67 % of the lines have fewer than 30 characters."""
    share = _share(text.lines, lambda line: len(line) < 30)
    return None if share <= 0.67 else ("fineweb_short_lines", f"{share:.0%} of lines")


def _share(items: list[str], test) -> float:
    return sum(1 for item in items if test(item)) / len(items) if items else 0.0


# ---- which filters apply ---------------------------------------------------------------------------------------------

WEB_FILTERS = (
    gopher_word_count,
    gopher_word_length,
    gopher_symbols,
    gopher_bullets,
    gopher_ellipses,
    gopher_letters,
    gopher_stop_words,
    gopher_repeated_lines,
    gopher_top_ngram,
    gopher_repeated_ngrams,
    c4_placeholder,
    c4_curly_bracket,
    fineweb_line_ends,
    fineweb_short_lines,
)
"""For prose, in order: the first reason is the one recorded."""


def technical_repetition(text: Text) -> Reason | None:
    """Drop technical pages that are mostly repetition: generated tables, logs."""
    share = repeated_ngram_share(text, 10)
    return None if share <= 0.75 else ("technical_repetition", f"repeated 10-grams cover {share:.0%} of the characters")


def technical_word_count(text: Text) -> Reason | None:
    """Drop technical pages of fewer than 20 words."""
    count = len(text.words)
    return None if count >= 20 else ("technical_word_count", f"{count} words")


TECHNICAL_FILTERS = (technical_word_count, technical_repetition)
"""For code, documentation and mathematics."""


def why_drop(text: str, language: str = "en", technical: bool | None = None) -> Reason | None:
    """The first reason to drop a text, or None. `technical` None looks at the text to choose the filters."""
    measured = Text(text, language)
    if technical is None:
        technical = is_technical(text)
    for filter in TECHNICAL_FILTERS if technical else WEB_FILTERS:
        reason = filter(measured)
        if reason is not None:
            return reason
    return None
