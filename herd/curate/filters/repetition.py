"""Filters that find repetition: lines, paragraphs and n-grams of words that stand there again and again.

Source: Gopher (Rae et al. 2021, table A1).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from herd.curate.filters.text import Reason, Text

_LEAST_TOP_COUNT = 4  # a short page that names its subject three times is no spun text


_LEAST_SIZE = 0.05  # of the characters: the names of who speaks come again and again, and are a small part of it


_LEAST_PLAIN = 0.6  # share of words in small letters, for a page to be an article with names in it


def gopher_repeated_lines(text: Text, most_lines: float = 0.3, most_characters: float = 0.2) -> Reason | None:
    """Drop pages where repeated lines are over 30 % of the lines or 20 % of the characters."""
    return repeats("gopher_repeated_lines", "lines", text.lines, most_lines, most_characters)


def gopher_repeated_paragraphs(text: Text, most_paragraphs: float = 0.3, most_characters: float = 0.2) -> Reason | None:
    """Drop pages where repeated paragraphs are over 30 % of the paragraphs or 20 % of the characters."""
    paragraphs = [stripped for paragraph in text.text.split("\n\n") if (stripped := paragraph.strip())]
    return repeats("gopher_repeated_paragraphs", "paragraphs", paragraphs, most_paragraphs, most_characters)


def repeats(name: str, unit: str, pieces: list[str], most: float, most_characters: float) -> Reason | None:
    """The reason to drop a page where repeated pieces are over `most` of them, or hold over `most_characters`."""
    if len(set(pieces)) == len(pieces):
        return None
    repeats = [piece for piece, count in Counter(pieces).items() for _ in range(count - 1)]
    by_count, by_size = len(repeats) / len(pieces), sum(map(len, repeats)) / max(1, sum(map(len, pieces)))
    if by_count > most and by_size > _LEAST_SIZE:
        return name, f"{by_count:.0%} of {unit}"
    return (name, f"{by_size:.0%} of characters") if by_size > most_characters else None


def gopher_top_ngram(text: Text, most_2: float = 0.20, most_3: float = 0.18, most_4: float = 0.16) -> Reason | None:
    """Drop pages where the commonest 2-, 3- or 4-gram covers over 20, 18 or 16 % of the characters."""
    for n, limit in ((2, most_2), (3, most_3), (4, most_4)):
        length = n * (text.word_characters or 1)
        keys = text.ngram_keys(length)
        if len(keys) == 0:
            return None
        key, count = _commonest(keys)
        if count < _LEAST_TOP_COUNT:
            continue
        first = int((keys == key).argmax())
        share = int(text.word_lengths[first : first + length].sum()) * count / max(1, int(text.word_lengths.sum()))
        is_name = all(_is_name(word) for word in text.words[first : first + length])
        if share > (2 * limit if is_name and _is_mostly_plain(text) else limit):
            span = " ".join(text.words[first : first + length])
            return "gopher_top_ngram", f"{n}-gram {span!r} is {share:.0%} of the characters"
    return None


def _commonest(keys: np.ndarray) -> tuple[np.uint64, int]:
    """The commonest key and how often it stands there; the smallest of equally common ones."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    top = int(counts.argmax())
    return ordered[starts[top]], int(counts[top])


def gopher_repeated_ngrams(text: Text, most_5: float = 0.15, most_10: float = 0.10) -> Reason | None:
    """Drop pages where repeated 5- to 10-grams cover over 15 to 10 % of the characters (logs, spun text).

    The limits of the lengths between are on a straight line, as in the source.
    """
    for n in range(5, 11):
        share = repeated_ngram_share(text, n * (text.word_characters or 1))
        if share == 0:  # then no longer one is repeated either
            return None
        most = most_5 + (most_10 - most_5) * (n - 5) / 5 + 1e-9
        if share > most and (share > 2 * most or repeated_ngram_share(text, n, names=False) > most):
            return "gopher_repeated_ngrams", f"repeated {n}-grams cover {share:.0%} of the characters"
    return None


def repeated_ngram_share(text: Text, n: int, names: bool = True) -> float:
    """Share of the characters that lie in an n-gram of words which has stood before on the page.

    Without `names`, n-grams do not count that are capitalized words and numbers but for one: an article has to name
    its subject. Where most words are such, all count.
    """
    keys = text.ngram_keys(n)
    repeated = _repeated(keys)
    if not names and len(repeated) and _is_mostly_plain(text):
        plain = np.array([not _is_name(word) for word in text.words])
        before = np.concatenate([[0], plain.cumsum()])
        repeated = repeated[before[repeated + n] - before[repeated] > 1]
    if len(repeated) == 0:
        return 0.0
    covered = np.zeros(len(text.word_ids) + 1, dtype=np.int64)
    covered[repeated] += 1  # no place twice
    covered[repeated + n] -= 1
    inside = covered.cumsum()[:-1] > 0
    return float(text.word_lengths[inside].sum() / max(1, text.word_lengths.sum()))


def _is_name(word: str) -> bool:
    return word[0].isupper() or word[0].isdigit()


def _is_mostly_plain(text: Text) -> bool:
    """Whether most words are in small letters: an article with names in it, no list of them."""
    return sum(not _is_name(word) for word in text.words) > _LEAST_PLAIN * len(text.words)


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Where keys stand that have stood before, in order."""
    ordered = np.sort(keys)  # much faster than an order of the keys, and most pages have few repeats
    repeats = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeats) == 0:
        return np.empty(0, dtype=np.int64)
    place = np.minimum(np.searchsorted(repeats, keys), len(repeats) - 1)
    candidates = np.flatnonzero(repeats[place] == keys)
    _, first = np.unique(keys[candidates], return_index=True)
    return np.delete(candidates, first)


def technical_repetition(text: Text, most: float = 0.75) -> Reason | None:
    """Drop technical pages that are mostly repetition: generated tables, logs."""
    share = repeated_ngram_share(text, 10)
    return None if share <= most else ("technical_repetition", f"repeated 10-grams cover {share:.0%} of the characters")
