"""Checks of form that code can make of an answer: so many words, no comma, a given ending.

The names and arguments are IFEval's (`length_constraints:number_words`, `{"num_words": 40, "relation": "at least"}`),
so that rows with `instruction_id_list` and `kwargs` mean the same here and there. The code is our own and needs
nothing beside the standard library; `language:response_language` alone is not among them.

Source: Zhou et al. 2023 (IFEval), table 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from herd.errors import DataError

Check = Callable[..., bool]
"""(answer, arguments by name) -> whether it holds."""

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?\s][^.!?]*(?:[.!?]+(?=\s|$)|[.!?]+(?=\S)[^.!?]*)*[.!?]*")
_BULLET = re.compile(r"^\s*(?:\*(?!\*)|-)\s*\S.*$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*")
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _related(count: int, relation: str | None, limit: int) -> bool:
    if relation not in ("at least", "less than"):
        raise DataError(f"relation {relation!r}: expected `at least` or `less than`")
    return count >= limit if relation == "at least" else count < limit


def words(answer: str) -> list[str]:
    """The words of an answer, punctuation aside."""
    return _WORD.findall(answer)


def _occurrences(answer: str, word: str) -> int:
    return len(re.findall(re.escape(word), answer, re.IGNORECASE))


def _whole(answer: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) is not None


def _paragraphs(answer: str, mark: str) -> list[str]:
    parts = re.split(mark, answer)
    return [part.strip() for part in parts if part.strip()]


def _nth_first_word(answer: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = _paragraphs(answer, r"\n\n")
    if len(parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    found = words(parts[nth_paragraph - 1])
    return bool(found) and found[0].lower() == first_word.lower()


def _is_json(answer: str) -> bool:
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _two_answers(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    inner = [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def _postscript(answer: str, *, postscript_marker: str) -> bool:
    letters = [re.escape(one) for one in re.findall(r"[a-z]", postscript_marker.lower())]
    return re.search(r"(?:^|\s)" + r"\.?\s?".join(letters) + r"\.?.*", answer.lower()) is not None


def _titled(answer: str) -> bool:
    return any(found.strip("<> ") for found in re.findall(r"<<[^\n]+>>", answer))


def _cased(answer: str, upper: bool) -> bool:
    return answer.isupper() if upper else answer.islower()


CHECKS: Mapping[str, Check] = {
    "keywords:existence": lambda a, *, keywords: all(_occurrences(a, one) for one in keywords),
    "keywords:frequency": lambda a, *, keyword, frequency, relation: _related(
        _occurrences(a, keyword), relation, frequency
    ),
    "keywords:forbidden_words": lambda a, *, forbidden_words: not any(_whole(a, one) for one in forbidden_words),
    "keywords:letter_frequency": lambda a, *, letter, let_frequency, let_relation: _related(
        a.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "length_constraints:number_sentences": lambda a, *, num_sentences, relation: _related(
        len(_SENTENCE.findall(a)), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda a, *, num_paragraphs: (
        len(_paragraphs(a, r"\s?\*\*\*\s?")) == num_paragraphs
    ),
    "length_constraints:number_words": lambda a, *, num_words, relation: _related(len(words(a)), relation, num_words),
    "length_constraints:nth_paragraph_first_word": _nth_first_word,
    "detectable_content:number_placeholders": lambda a, *, num_placeholders: (
        len(re.findall(r"\[.*?\]", a)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda a, *, num_bullets: len(_BULLET.findall(a)) == num_bullets,
    "detectable_format:constrained_response": lambda a: any(one in a for one in _CHOICES),
    "detectable_format:number_highlighted_sections": lambda a, *, num_highlights: (
        sum(bool((one or two).strip()) for one, two in _HIGHLIGHT.findall(a)) >= num_highlights
    ),
    "detectable_format:multiple_sections": lambda a, *, section_spliter, num_sections: (
        len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", a)) >= num_sections
    ),
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _titled,
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": lambda a, *, prompt_to_repeat: (
        a.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda a, *, end_phrase: a.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": lambda a: len(a.strip()) > 1 and a.strip()[0] == a.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda a, *, capital_frequency, capital_relation: _related(
        sum(one.isupper() for one in re.findall(r"[\w'-]+", a)), capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda a: _cased(a, True),
    "change_case:english_lowercase": lambda a: _cased(a, False),
    "punctuation:no_comma": lambda a: "," not in a,
}
"""By IFEval's name."""


def checked(answer: str, row: Mapping[str, Any]) -> list[bool]:
    """Which of a row's checks an answer passes, in their order; an empty answer passes none.

    Raises:
        DataError: the row has no checks, or one that is not known here or lacks an argument.
    """
    names, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise DataError("no checks: expected `instruction_id_list`, a list of IFEval's names, and `kwargs` beside it")
    given = [{}] * len(names) if arguments is None else arguments
    if len(given) != len(names):
        raise DataError(f"`kwargs` has {len(given)} entries for {len(names)} checks; expected one for each")
    return [_one(answer, name, dict(own or {})) for name, own in zip(names, given)]


def _one(answer: str, name: str, arguments: dict[str, Any]) -> bool:
    check = CHECKS.get(name)
    if check is None:
        raise DataError(f"no check `{name}`; there are: {', '.join(CHECKS)}")
    given = {key: value for key, value in arguments.items() if value is not None}  # tables fill up with nothing
    try:
        return bool(answer.strip()) and check(answer, **given)
    except (TypeError, AttributeError) as error:
        raise DataError(f"check `{name}` cannot take {given}: {error}") from None
