"""Citations that the program sets: each sentence of an answer, the span of a passage that says it, or that none does.

A model is never asked for a source: it would write one that looks right. What is compared is words, names and numbers,
so a sentence in other words is marked unsupported, and one whose words stand in another order may pass.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from herd.knowledge.index import Hit
from herd.knowledge.terms import terms

LEAST = 0.8
"""The share of a sentence's words, weighed by their rarity, that must stand in the span."""
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=\S)|\n+|(?<=[。！？])|(?<=[\u0e00-\u0e7f]) +(?=[\u0e00-\u0e7f])")
_NO_END = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|St|No|vs|cf|e\.g|i\.e|[A-Z]))\.$")
STRONG = re.compile(r"\w*\d[\w.,]*\w|\d|(?<=[\w,;:] )[A-Z]\w+|[A-Z]\w*[A-Z]\w*")
NEGATION = re.compile(r"\b(?:not|no|never|cannot|none|neither|nor|without)\b|n['’]t\b", re.I)


@dataclass(frozen=True)
class Citation:
    """A sentence of an answer, and what supports it."""

    sentence: str
    end: int  # of the sentence, in characters of the answer
    supported: bool
    passage: int | None  # which of the passages, from 0; where nothing supports it, the nearest
    start: int  # of the quote, in characters of the passage
    quote: str  # stands in the passage, letter for letter
    share: float  # of the sentence's words that stand in the quote, weighed by their rarity


def cite(answer: str, passages: Sequence[Hit | str], *, least: float = LEAST) -> list[Citation]:
    """For every sentence of an answer the best span of the passages, and whether it holds what the sentence says.

    Supported is a sentence of which the span holds `least` of the words, every name and number, and a negation where
    the sentence has one and only there.
    """
    texts = [passage if isinstance(passage, str) else passage.text for passage in passages]
    spans = [(number, *span) for number, text in enumerate(texts) for span in spans_of(text)]
    words = [content_words(texts[number][start:end]) for number, start, end in spans]
    counts = Counter(word for found in words for word in found)
    weights = {word: math.log(1 + (len(spans) + 1) / (1 + count)) for word, count in counts.items()}
    unknown = math.log(2 + len(spans))
    found = []
    for start, end in sentences_of(answer):
        sentence = answer[start:end]
        wanted = {word: weights.get(word, unknown) for word in content_words(sentence)}
        if not wanted:
            continue
        best = Citation(sentence, end, False, None, 0, "", 0.0)
        for (number, first, last), held in zip(spans, words):
            share = sum(weight for word, weight in wanted.items() if word in held) / sum(wanted.values())
            if share <= 0 or (share < least and share <= best.share):
                continue
            quote = texts[number][first:last]
            good = share >= least and _agree(sentence, quote, held)
            if (good, share) > (best.supported, best.share):
                best = Citation(sentence, end, good, number, first, quote, share)
        found.append(best)
    return found


def marked(answer: str, citations: Sequence[Citation]) -> str:
    """The answer with `[1]` behind a sentence that passage 1 supports, and `[unsupported]` behind the others."""
    pieces, at = [], 0
    for one in citations:
        mark = f"[{one.passage + 1}]" if one.supported and one.passage is not None else "[unsupported]"
        pieces.append(f"{answer[at : one.end]} {mark}")
        at = one.end
    return "".join([*pieces, answer[at:]])


def _agree(sentence: str, quote: str, held: set[str]) -> bool:
    strong = {word for found in STRONG.findall(sentence) for word in content_words(found)}
    words = content_words(sentence)
    parts = [quote[start:end] for start, end in sentences_of(quote)]
    nearest = max(parts, key=lambda part: len(words & content_words(part)), default=quote)  # another's `not` is its own
    return strong <= held and bool(NEGATION.search(sentence)) == bool(NEGATION.search(nearest))


def content_words(text: str) -> set[str]:
    """The words of a text as they are compared: in lower case, without a plural's s."""
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in terms(text)}


def sentences_of(text: str) -> list[tuple[int, int]]:
    """Start and end of every sentence, without the blanks around it."""
    found, start = [], 0
    for end, after in [*((match.start(), match.end()) for match in _END.finditer(text)), (len(text), len(text))]:
        if end < len(text) and _NO_END.search(text, start, end) and "\n" not in text[end:after]:
            continue
        piece = text[start:end]
        if piece.strip():
            found.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
        start = after
    return found


def spans_of(text: str) -> list[tuple[int, int]]:
    """Every sentence, and every two that follow one another; the shorter first, which wins where both hold the same."""
    single = sentences_of(text)
    return single + [(first[0], second[1]) for first, second in itertools.pairwise(single)]
