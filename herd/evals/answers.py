"""What a row asks, what is expected, and how near an answer comes: SQuAD's token F1 on anybody's rows.

A row has `messages`, a `prompt`, or any other shape that docs/tuning.md lists. Optional: `answer` (the reference, else
what the assistant says at the end), `name` (what the question is about) and `kind`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from herd.data.shapes import ANSWERS, LISTS, asked_in
from herd.data.talks import Notes, turns_of
from herd.errors import DataError
from herd.types import Message

_WORDS = re.compile(r"[^\W_]+|_")
_ARTICLES = {"a", "an", "the"}

Question = Mapping[str, Any]
"""A row with a question; see the top of this file."""


# ---- rows ------------------------------------------------------------------------------------------------------------


def prompt_of(question: Question) -> list[Message]:
    """The conversation up to and including the user's question, without the reference answer, in any shape of
    docs/tuning.md.

    Raises:
        DataError: nothing is asked in the row.
    """
    try:
        return asked_in(question)
    except DataError as error:
        raise DataError(f"no prompt: {error}") from None


def question_text(question: Question) -> str:
    """What is asked: the last message of the user, or the last before the answer."""
    asked = prompt_of(question)
    return str(next((message for message in reversed(asked) if message["role"] == "user"), asked[-1])["content"])


def reference_of(question: Question) -> str | None:
    """What an answer is compared with: `answer`, else what the assistant says at the end; None where neither is."""
    if isinstance(question.get("answer"), str):
        return question["answer"]
    if any(question.get(name) for name in LISTS):
        name = next(name for name in LISTS if question.get(name))
        last = turns_of(question[name], name, Notes())[-1][0]
        return last["content"] if last["role"] == "assistant" and isinstance(last.get("content"), str) else None
    return next((question[name] for name in ANSWERS if isinstance(question.get(name), str)), None)


# ---- token F1 --------------------------------------------------------------------------------------------------------


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


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1.

    Source: Lin 2004 (ROUGE-L), without stemming.
    """
    predicted, expected = words_of(prediction), words_of(reference)
    before = [0] * (len(expected) + 1)
    for word in predicted:
        row = [0]
        for place, other in enumerate(expected):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[-1]))
        before = row
    return 2 * before[-1] / max(len(predicted) + len(expected), 1)


def without_given(answer: str, given: str) -> str:
    """An answer without what the question gave away already, where it begins with that: copying earns nothing.

    Example:
        >>> without_given("os.path.join: Join two paths.", "os.path.join")
        'Join two paths.'
    """
    text = answer.strip()
    return text.removeprefix(given).lstrip(":").strip() if given and text.startswith(given) else text


def scored_part(answer: str, question: Question) -> str:
    """An answer without the row's `name` at its beginning, if the question gives that away and does not ask for it."""
    name = question.get("name")
    if not isinstance(name, str) or reference_of(question) == name:
        return answer.strip()
    said = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question_text(question))
    return without_given(answer, name if said else "")


def expected_part(question: Question) -> str:
    """What of the reference counts: `answer` as it stands, a message without the name it begins with."""
    reference = reference_of(question) or ""
    return reference if isinstance(question.get("answer"), str) else scored_part(reference, question)


def f1_scores(answers: Sequence[str], questions: Sequence[Question]) -> list[float]:
    """Token F1 of each answer against its question's reference, the name at its beginning left out of both."""
    return [
        token_f1(scored_part(answer, question), expected_part(question))
        for answer, question in zip(answers, questions, strict=True)
    ]
