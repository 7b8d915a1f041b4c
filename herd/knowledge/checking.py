"""Sentences held against one's own files: supported, contradicted, or not found.

Contradicted is a sentence that a passage says in the same words but for a number, a name or a negation. Words are
compared and not meaning: a claim in other words is not found, and an antonym in the place of a word is not seen.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from herd.knowledge.citations import NEGATION, STRONG, cite, content_words, sentences_of, spans_of
from herd.knowledge.index import MAX_TERMS, Hit, Index
from herd.knowledge.terms import terms

LEAST_ALIKE = 0.75
"""The share of a sentence's other words that a span must hold to say the opposite."""
_FEWEST = 3  # other words that are compared at least
_NUMBER = re.compile(r"\d")
_SMALL = frozenset(("did", "does", "do", "not", "no", "never", "cannot", "none", "neither", "nor", "without", "t"))

Verdict = Literal["supported", "contradicted", "not found"]


@dataclass(frozen=True)
class Checked:
    """A sentence with its verdict, and the passage that says so."""

    sentence: str
    verdict: Verdict
    differs: tuple[str, ...]  # `number`, `name`, `negation`: what contradicts
    passage: Hit | None  # where it was not found, none
    quote: str  # stands in the passage, letter for letter


def check(text: str, index: Index, *, limit: int = 5) -> list[Checked]:
    """Every sentence of a text, held against the passages that it finds itself."""
    found = []
    for start, end in sentences_of(text):
        sentence = text[start:end]
        wanted = terms(sentence)
        if wanted:
            hits = index.search(sentence if len(wanted) <= MAX_TERMS else " ".join(wanted[:MAX_TERMS]), limit)
            found.append(judged(sentence, hits))
    return found


def judged(sentence: str, hits: Sequence[Hit]) -> Checked:
    """One sentence, held against passages."""
    for one in cite(sentence, hits):
        if one.supported and one.passage is not None:
            return Checked(sentence, "supported", (), hits[one.passage], one.quote)
    spans = [(hit, hit.text[start:end]) for hit in hits for start, end in spans_of(hit.text)]
    words = [content_words(quote) for _, quote in spans]
    counts = Counter(word for held in words for word in held)
    strong = _strong(sentence)
    plain = content_words(sentence) - strong - _SMALL
    if len(plain) < _FEWEST:
        return Checked(sentence, "not found", (), None, "")
    weights = {word: math.log(1 + (len(spans) + 1) / (1 + counts[word])) for word in plain}
    best, least = Checked(sentence, "not found", (), None, ""), LEAST_ALIKE
    for (hit, quote), held in zip(spans, words):
        share = sum(weight for word, weight in weights.items() if word in held) / sum(weights.values())
        if share >= least and (differs := _differences(sentence, strong, quote, held)):
            best, least = Checked(sentence, "contradicted", differs, hit, quote), share + 1e-9
    return best


def _differences(sentence: str, strong: set[str], quote: str, held: set[str]) -> tuple[str, ...]:
    """In what two texts of the same words differ; nothing where one only says more than the other."""
    theirs, found = _strong(quote), []
    missing, others = strong - held, theirs - content_words(sentence)
    for kind, is_one in (("number", True), ("name", False)):
        if any(bool(_NUMBER.search(word)) is is_one for word in missing) and any(
            bool(_NUMBER.search(word)) is is_one for word in others
        ):
            found.append(kind)
    if not missing and bool(NEGATION.search(sentence)) != bool(NEGATION.search(quote)):
        found.append("negation")
    return tuple(found)


def _strong(text: str) -> set[str]:
    return {word for found in STRONG.findall(text) for word in content_words(found)}
