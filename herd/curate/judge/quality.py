"""How good a text is to learn from, between 0 and 1: a transparent score until a trained classifier takes its place.

The score is the product of five measures that the literature's filters cut on; as a product, one bad measure is enough
to rank a page low. Source of the measures: Gopher (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020), FineWeb
(Penedo et al. 2024), and compressibility as a proxy of redundancy.
"""

from __future__ import annotations

import math
import re
import zlib

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?:;][\"')\]]?$")
_FULL_LENGTH_WORDS = 300
_SAMPLE = 20_000


def quality(text: str, is_code: bool = False) -> float:
    """A score of 0 to 1. Code is judged by its comments, naming and redundancy, prose by words and sentences."""
    sample = text[:_SAMPLE]
    words = _WORD.findall(sample)
    if len(words) < 5:
        return 0.0
    lines = [line.strip() for line in sample.split("\n") if line.strip()]
    length = min(1.0, math.log(1 + len(words)) / math.log(1 + _FULL_LENGTH_WORDS))
    raw = sample.encode()
    density = _trapezoid(len(zlib.compress(raw, 1)) / len(raw), 0.08, 0.30, 0.65, 0.95)
    mean_word = sum(map(len, words)) / len(words)
    wording = _trapezoid(mean_word, 2.0, 3.5, 7.5, 13.0)
    letters = _trapezoid(sum(map(len, words)) / len(sample), 0.25, 0.6 if not is_code else 0.45, 0.9, 1.01)
    ended = sum(1 for line in lines if _SENTENCE_END.search(line)) / len(lines)
    explained = _share_of_comments(lines) if is_code else ended
    sentences = 0.4 + 0.6 * min(1.0, explained / (0.3 if is_code else 0.5))
    return round(length * density * wording * letters * sentences, 4)


def _trapezoid(value: float, zero: float, full: float, full_end: float, zero_end: float) -> float:
    """0 outside, 1 within [full, full_end], straight between."""
    if value <= zero or value >= zero_end:
        return 0.0
    return min(1.0, (value - zero) / (full - zero), (zero_end - value) / (zero_end - full_end))


def _share_of_comments(lines: list[str]) -> float:
    inside, count = False, 0
    for line in lines:
        marks = line.count('"""') + line.count("'''")
        if inside or marks or line.startswith(("#", "//", "*", "/*", "--")):
            count += 1
        inside ^= marks % 2 == 1
    return count / len(lines)
