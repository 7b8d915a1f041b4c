"""What answers are worth that know nothing: the reference of the most similar other question, and of a random one.

A small model's F1 means little alone, because answers of one kind share words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from herd.evals.answers import Question, question_text, reference_of, words_of


class Bm25:
    """Okapi BM25 over short texts, cut into words as `words_of` does (so `json.dumps` meets `json.dump`).

    Source: Robertson and Zaragoza 2009; k1 = 1.2, b = 0.75.
    """

    def __init__(self, texts: Sequence[str], tokenize: Callable[[str], list[str]] = words_of):
        self._tokenize = tokenize
        counts = [Counter(tokenize(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        norm = 1.2 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1e-9)) if len(texts) else lengths
        self._num_texts = len(texts)
        postings: dict[str, list[tuple[int, int]]] = {}
        for index, count in enumerate(counts):
            for word, times in count.items():
                postings.setdefault(word, []).append((index, times))
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, entries in postings.items():
            where, times = np.array(entries).T
            rarity = math.log(1 + (len(texts) - len(entries) + 0.5) / (len(entries) + 0.5))
            self._weights[word] = where, rarity * times * 2.2 / (times + norm[where])

    def scores(self, query: str) -> np.ndarray:
        """(N,) the score of every text for the query."""
        total = np.zeros(self._num_texts)
        for word in self._tokenize(query):
            if word in self._weights:
                where, weight = self._weights[word]
                total[where] += weight
        return total


def retrieved_answers(questions: Sequence[Question], pool: Sequence[Question]) -> list[str]:
    """For each question the answer of the most similar question of `pool` about something else.

    Similar by BM25 between the questions' words; of the same kind, so that a signature is answered with a signature.
    The question's own fact (same name), and any row with a word-for-word equal question, is left out.
    """
    answers: list[str] = [""] * len(questions)
    for kind in sorted({_kind(question) for question in questions}):
        rows = [row for row in pool if _kind(row) == kind] or list(pool)
        index = Bm25([question_text(row) for row in rows])
        names = np.array([row.get("name") for row in rows], dtype=object)
        texts = np.array([question_text(row) for row in rows], dtype=object)
        for place, question in enumerate(questions):
            if _kind(question) != kind:
                continue
            scores = index.scores(question_text(question))
            same_name = names == question["name"] if question.get("name") is not None else False
            scores[same_name | (texts == question_text(question))] = -1.0
            best = int(scores.argmax()) if len(rows) else -1
            answers[place] = (reference_of(rows[best]) or "") if best >= 0 and scores[best] >= 0 else ""
    return answers


def shuffled_answers(questions: Sequence[Question], *, seed: int = 0) -> list[str]:
    """For each question the reference of another random question of the same kind (a derangement where possible)."""
    answers = [""] * len(questions)
    generator = np.random.default_rng(seed)
    for kind in sorted({_kind(question) for question in questions}):
        places = [place for place, question in enumerate(questions) if _kind(question) == kind]
        order = generator.permutation(len(places))
        for here, there in zip(order, np.roll(order, 1)):  # a single cycle: nobody keeps their own
            answers[places[here]] = reference_of(questions[places[there]]) or ""
    return answers


def _kind(question: Question) -> str:
    return str(question.get("kind") or "")
