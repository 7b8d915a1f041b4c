"""Verifiers: what code can say of an answer, from 0 to 1, where 1 is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from herd.evals.answers import f1_scores, reference_of
from herd.evals.checks import checked
from herd.evals.statistics import Interval, summary

RIGHT = 1 - 1e-6
"""From here on an answer counts as right."""
Verifier = Literal["checks", "answer"]
"""Share of a row's checks (IFEval's `instruction_id_list`) that hold, or token F1 to its reference answer."""


def verifier_of(rows: Sequence[Mapping[str, Any]]) -> Verifier | None:
    """The verifier whose columns all rows have, checks first; None where no verifier fits."""
    if all("instruction_id_list" in row for row in rows):
        return "checks"
    return "answer" if all(reference_of(row) is not None for row in rows) else None


def verified(verifier: Verifier, row: Mapping[str, Any], answers: Sequence[str]) -> list[float]:
    """The score of each answer to one row's question.

    Raises:
        DataError: the row has no checks, or unknown ones.
    """
    if verifier == "answer":
        return f1_scores(answers, [row] * len(answers))
    found = [checked(answer, row) for answer in answers]
    return [sum(one) / len(one) for one in found]


def gain_over_random(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]], chosen: Sequence[int]
) -> tuple[Interval, int]:
    """What the chosen answers score above a random pick, over the prompts whose answers differ in score, and how many.

    `chosen` are places in each row of `scores`. The interval is over whole groups where rows have one.
    """
    differ = [place for place, values in enumerate(scores) if values and max(values) > min(values)]
    gains = [scores[place][chosen[place]] - sum(scores[place]) / len(scores[place]) for place in differ]
    groups = [str(rows[place].get("group") or place) for place in differ]
    return summary(gains, groups), len(differ)
