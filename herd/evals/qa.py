"""Free answers judged against references: SQuAD's token F1, bootstrap intervals, and baselines that know nothing.

A small model's F1 means little alone, because answers of one kind share words. So every score stands beside what
one gets by giving the answer of *another* question: the most similar one (BM25), and a random one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WORDS = re.compile(r"[^\W_]+|_")
_ARTICLES = {"a", "an", "the"}


# ---- scores ----------------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares answers.

    Code is cut at punctuation: `os.path.join` is three words, `max_tokens` is two.
    """
    return [word for word in _WORDS.findall(text.lower()) if word not in _ARTICLES and word != "_"]


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of the shares of words that prediction and reference have in common, 0 to 1.

    Two empty answers agree; an empty and a non-empty one do not.

    Source: Rajpurkar et al. 2016 (SQuAD), evaluation script.
    """
    predicted, expected = words_of(prediction), words_of(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval and standard error."""

    value: float
    low: float
    high: float
    stderr: float
    n: int


def bootstrap(values: Sequence[float], *, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean of `values` and its 95 % percentile interval over resamples with replacement.

    For a paired comparison give the differences: the second system is better where `low > 0`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0)
    generator = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // array.size)  # rows of indices held at once
    means = np.concatenate(
        [
            array[generator.integers(array.size, size=(min(chunk, resamples - start), array.size))].mean(axis=1)
            for start in range(0, resamples, chunk)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), float(means.std()), int(array.size))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of `ours - theirs` over the same questions, with its 95 % interval."""
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed=seed)


# ---- answers ---------------------------------------------------------------------------------------------------------


Question = Mapping[str, Any]
"""A row of `eval_*.jsonl`: `messages` (question, full answer), `answer` (what is scored), `name`, `kind`, `group`."""


def question_text(question: Question) -> str:
    """What the user asks: the last user message."""
    return next(m["content"] for m in reversed(question["messages"]) if m["role"] == "user")


def prompt_of(question: Question) -> list[dict]:
    """The conversation up to and including the user's question, without the reference answer."""
    messages = list(question["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


def completion_prompt(question: Question) -> str:
    """The question as raw text for a base model, which knows no chat format."""
    return f"Question: {question_text(question)}\nAnswer:"


def scored_part(answer: str, question: Question) -> str:
    """An answer without the name it begins with: copying that from the question earns nothing.

    Where the name itself is asked for (kind `reverse`) everything counts.

    Example:
        >>> scored_part("os.path.join: Join two paths.", {"name": "os.path.join", "kind": "summary"})
        'Join two paths.'
    """
    text, name = answer.strip(), question["name"]
    if not name or question["kind"] == "reverse" or not text.startswith(name):
        return text
    return text.removeprefix(name).lstrip(":").strip()


def f1_scores(answers: Sequence[str], questions: Sequence[Question]) -> list[float]:
    """Token F1 of each answer against its question's reference, the name at its beginning left out of both."""
    return [
        token_f1(scored_part(answer, question), question["answer"])
        for answer, question in zip(answers, questions, strict=True)
    ]


# ---- baselines -------------------------------------------------------------------------------------------------------


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
    for kind in sorted({question["kind"] for question in questions}):
        rows = [row for row in pool if row["kind"] == kind] or list(pool)
        index = Bm25([question_text(row) for row in rows])
        names = np.array([row["name"] for row in rows], dtype=object)
        texts = np.array([question_text(row) for row in rows], dtype=object)
        for place, question in enumerate(questions):
            if question["kind"] != kind:
                continue
            scores = index.scores(question_text(question))
            scores[(names == question["name"]) | (texts == question_text(question))] = -1.0
            best = int(scores.argmax()) if len(rows) else -1
            answers[place] = rows[best]["answer"] if best >= 0 and scores[best] >= 0 else ""
    return answers


def shuffled_answers(questions: Sequence[Question], *, seed: int = 0) -> list[str]:
    """For each question the reference of another random question of the same kind (a derangement where possible)."""
    answers = [""] * len(questions)
    generator = np.random.default_rng(seed)
    for kind in sorted({question["kind"] for question in questions}):
        places = [place for place, question in enumerate(questions) if question["kind"] == kind]
        order = generator.permutation(len(places))
        for here, there in zip(order, np.roll(order, 1)):  # a single cycle: nobody keeps their own
            answers[places[here]] = questions[places[there]]["answer"]
    return answers
