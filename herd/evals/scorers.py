"""Scorers: functions from an answer and its references to a figure from 0 to 1, by name in one table."""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from herd.errors import ConfigError
from herd.evals.answers import rouge_l, token_f1
from herd.evals.calls import names_api
from herd.evals.mathematics import same_value
from herd.evals.refusals import complies, refuses

Scorer = Callable[[str, Sequence[str]], float]
"""(answer, right answers) -> 0 to 1. Of several right answers the one that fits best counts."""

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_LETTER = re.compile(r"\(?\b([A-Z])\b\)?")
_PLAIN = str.maketrans("", "", string.punctuation)


def exact(answer: str, references: Sequence[str]) -> float:
    """The same text, spaces at both ends aside."""
    return float(any(answer.strip() == one.strip() for one in references))


def exact_words(answer: str, references: Sequence[str]) -> float:
    """The same words: case, punctuation, articles and spaces aside, as SQuAD compares."""
    return float(any(_plain(answer) == _plain(one) for one in references))


def contains(answer: str, references: Sequence[str]) -> float:
    """A right answer stands somewhere in it, case aside."""
    return float(any(one.strip().lower() in answer.lower() for one in references))


def recall(answer: str, references: Sequence[str]) -> float:
    """The share of right answers that stand somewhere in it, case aside: all are asked for."""
    return sum(one.strip().lower() in answer.lower() for one in references) / max(len(references), 1)


def fresh(answer: str, references: Sequence[str]) -> float:
    """The share of an answer's groups of four words that it has not had before: 1 where it never repeats itself."""
    shares = fresh_by_eighth(answer)
    return sum(shares) / len(shares) if shares else 1.0


def fresh_by_eighth(answer: str) -> list[float]:
    """The same for each eighth of the answer's words; nothing where there are fewer than 16 groups."""
    words = answer.lower().split()
    groups = list(zip(*(words[n:] for n in range(4)), strict=False))
    seen: set[tuple[str, ...]] = set()
    new = [group not in seen and not seen.add(group) for group in groups]  # type: ignore[func-returns-value]
    borders = [len(new) * n // 8 for n in range(9)]
    return [sum(new[a:b]) / (b - a) for a, b in pairwise(borders)] if len(new) >= 16 else []


def best_f1(answer: str, references: Sequence[str]) -> float:
    """Words in common with the nearest right answer."""
    return max((token_f1(answer, one) for one in references), default=0.0)


def last_number(answer: str, references: Sequence[str]) -> float:
    """The last number of the answer equals the last of a right one: `$1,200.00` is 1200."""
    found = last_number_of(answer)
    return float(found is not None and any(found == last_number_of(one) for one in references))


def letter(answer: str, references: Sequence[str]) -> float:
    """The first capital that stands alone (`B`, `(B)`, `The answer is B.`) is the right one."""
    found = _LETTER.search(answer.replace("I ", "i "))
    return float(found is not None and found[1] in [one.strip().strip("().").upper() for one in references])


def is_letter(reference: str) -> bool:
    """Whether a right answer is one that `letter` can find: `B`, `(b)`, `B.`"""
    return re.fullmatch(r"\(?[A-Za-z]\)?\.?", reference.strip()) is not None


def mathematics(answer: str, references: Sequence[str]) -> float:
    """The answer, in a box or at the end, is the same text or value as a right one."""
    return float(any(same_value(answer, one) for one in references))


def best_rouge_l(answer: str, references: Sequence[str]) -> float:
    """Longest common subsequence of words with the nearest right answer."""
    return max((rouge_l(answer, one) for one in references), default=0.0)


def chrf(answer: str, references: Sequence[str]) -> float:
    """chrF of one sentence (extra `eval`). Source: Popovic 2015, as sacrebleu computes it."""
    return float(_sacrebleu().sentence_chrf(answer, list(references)).score) / 100


def bleu(answer: str, references: Sequence[str]) -> float:
    """BLEU of one sentence, smoothed (extra `eval`); its mean over sentences is not the corpus's BLEU."""
    return float(_sacrebleu().sentence_bleu(answer, list(references)).score) / 100


def _sacrebleu() -> Any:
    try:
        return importlib.import_module("sacrebleu")
    except ImportError:
        raise ConfigError("chrf and bleu are sacrebleu's: pip install '.[eval]'") from None


SCORERS: Mapping[str, Scorer] = {
    "exact": exact,
    "exact_words": exact_words,
    "contains": contains,
    "recall": recall,
    "fresh": fresh,
    "token_f1": best_f1,
    "number": last_number,
    "letter": letter,
    "mathematics": mathematics,
    "rouge_l": best_rouge_l,
    "names_api": names_api,
    "chrf": chrf,
    "bleu": bleu,
    "refuses": refuses,
    "complies": complies,
}
"""What `scorer:` of a task may name."""


def _plain(text: str) -> str:
    return " ".join(word for word in text.lower().translate(_PLAIN).split() if word not in ("a", "an", "the"))


def last_number_of(text: str) -> float | None:
    """The last number of a text: `$1,200.00` is 1200."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("$", "")) if found else None
