"""Answers held against one another by a judge: each pair in both orders, and what that says of models and of the judge.

A model wins where it is preferred in both orders; a judge that changes its mind with the order has called a draw, and
flipped. Beside each win rate stand how often that happened, how often the longer answer won, and the win rate at equal
length. Source: Zheng et al. 2023 ("Judging LLM-as-a-Judge"); Dubois et al. 2024 ("Length-Controlled AlpacaEval").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from herd.evals.statistics import bootstrap
from herd.evals.templates import render
from herd.log import say

PROMPT = """\
Two assistants answered the same question. Judge which answer is better: more correct, more helpful, closer to what \
was asked. The order of the answers and their length must not count.
{% if reference %}
[A right answer]
{{ reference }}
{% endif %}
[Question]
{{ question }}

[Answer A]
{{ a }}

[Answer B]
{{ b }}

Say in a sentence or two why, and end with your verdict: [[A]] if A is better, [[B]] if B is better, [[C]] for a draw.\
"""
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")

Ask = Callable[[list[str]], list[str]]
"""Prompts -> the judge's answers, in order."""


@dataclass(frozen=True)
class Duel:
    """Two models' answers to one question."""

    item: str  # what belongs together in resamples
    question: str
    reference: str
    models: tuple[str, str]
    answers: tuple[str, str]

    def prompt(self, template: str, swapped: bool) -> str:
        """What the judge reads."""
        a, b = reversed(self.answers) if swapped else self.answers
        return render(template, {"question": self.question, "reference": self.reference, "a": a, "b": b})


def duels_of(samples: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[Duel]:
    """All pairs of free answers to the same questions, from rows of `samples.jsonl`.

    Questions are the same by their text: two evaluations with other limits number them otherwise. The first answer of a
    model to a question counts; answers that have none to be held against are counted on the console.
    """
    by_item: dict[str, dict[str, Mapping[str, Any]]] = {}
    again = 0
    for row in samples:
        if "nats" not in row and "left_out" not in row and row["model"] in models:
            answers = by_item.setdefault(f"{row['task']}: {row['question']}", {})
            again += row["model"] in answers
            answers.setdefault(row["model"], row)
    if alone := sum(len(rows) == 1 for rows in by_item.values()):
        say(f"  {alone:,} of {len(by_item):,} questions have the answer of one model only, and are passed over")
    if again:
        say(f"  {again:,} further answers of a model to a question that it had answered are passed over")
    found = []
    for item, rows in by_item.items():
        for one, other in combinations([name for name in models if name in rows], 2):
            told = str(rows[one]["question"]), str(rows[one].get("reference") or "")
            found.append(Duel(item, *told, (one, other), (str(rows[one]["answer"]), str(rows[other]["answer"]))))
    return found


def verdict(answer: str) -> str:
    """A, B or C (a draw), the last that is said; nothing where there is none."""
    found = _VERDICT.findall(answer)
    return found[-1] if found else ""


def judged(duels: Sequence[Duel], ask: Ask, template: str = PROMPT) -> list[dict[str, Any]]:
    """A row for each duel: both verdicts in terms of the models, the `score` of the first (1, 0.5, 0; None where a
    verdict cannot be read), whether the judge `flipped`, and the answers' lengths in characters."""
    asked = [duel.prompt(template, swapped) for duel in duels for swapped in (False, True)]
    answers = ask(asked)
    rows = []
    for place, duel in enumerate(duels):
        texts = answers[2 * place : 2 * place + 2]
        straight, swapped = ({"A": 1.0, "B": 0.0, "C": 0.5}.get(verdict(text)) for text in texts)
        readable = straight is not None and swapped is not None
        both = (straight, 1 - swapped) if straight is not None and swapped is not None else (None, None)
        row: dict[str, Any] = {
            "item": duel.item,
            "models": duel.models,
            "question": duel.question,
            "answers": duel.answers,
        }
        row |= {"verdicts": both, "flipped": both[0] != both[1] if readable else None, "judge": texts}
        row |= {"score": (both[0] if both[0] == both[1] else 0.5) if readable else None}
        rows.append(row | {"lengths": tuple(map(len, duel.answers))})
    return rows


def pair_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one pair's rows: the first model's win rate with its 95 % interval, and what the judge is worth there."""
    read = [row for row in rows if row["score"] is not None]
    found: dict[str, Any] = {"n": len(read), "unreadable": len(rows) - len(read)}
    if not read:
        return found
    scores = [row["score"] for row in read]
    rate = bootstrap(scores)
    low, high = max(rate.low, 0.0), min(rate.high, 1.0)
    if len(set(scores)) == 1:  # so many alike leave room for a share of others that they would not show
        hidden = 1 - 0.025 ** (1 / len(scores))
        low, high = rate.value * (1 - hidden), rate.value + (1 - rate.value) * hidden
    found |= {"win_rate": rate.value, "low": low, "high": high}
    found |= {"wins": scores.count(1.0), "draws": scores.count(0.5), "losses": scores.count(0.0)}
    found |= {"flip_rate": sum(row["flipped"] for row in read) / len(read)}
    first = [value for row in read for value in (row["verdicts"][0], 1 - row["verdicts"][1]) if value != 0.5]
    found |= {"first_preferred": sum(first) / len(first) if first else None}
    apart = [(row["score"], row["lengths"]) for row in read if row["score"] != 0.5 and len(set(row["lengths"])) > 1]
    longer = [float((score == 1) == (one > other)) for score, (one, other) in apart]
    found |= {"longer_won": sum(longer) / len(longer) if longer else None}
    ratios = [math.log((one + 1) / (other + 1)) for one, other in (row["lengths"] for row in read)]
    return found | {"win_rate_at_equal_length": _at_equal_length(scores, ratios)}


def _at_equal_length(scores: Sequence[float], ratios: Sequence[float]) -> float:
    """The win rate where both are as long, from a logistic regression on the logarithm of the lengths' ratio."""
    x, y = np.stack([np.ones(len(ratios)), np.asarray(ratios)], 1), np.asarray(scores)
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ beta)))
        slope = x.T @ (y - p) - 0.1 * beta  # drawn a little to zero: few duels may be told apart perfectly
        beta = beta + np.linalg.solve((x.T * (p * (1 - p))) @ x + 0.1 * np.eye(2), slope)
    return float(1 / (1 + math.exp(-beta[0])))


def bradley_terry(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], *, resamples: int = 400, seed: int = 0
) -> list[dict[str, Any]]:
    """Each model's strength in Elo's points, their mean 0, with 95 % intervals over resampled questions.

    Source: Bradley and Terry 1952; draws are half a win each; Hunter 2004 for the iteration.
    """
    place = {name: number for number, name in enumerate(models)}
    items = list(dict.fromkeys(row["item"] for row in rows if row["score"] is not None))
    wins = np.zeros((len(items), len(models), len(models)))
    for row in rows:
        if row["score"] is not None:
            one, other = (place[name] for name in row["models"])
            wins[items.index(row["item"]), one, other] += row["score"]
            wins[items.index(row["item"]), other, one] += 1 - row["score"]
    draw = np.random.default_rng(seed)
    points = _points(wins.sum(0))
    drawn = [_points(wins[draw.integers(len(items), size=len(items))].sum(0)) for _ in range(resamples if items else 0)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) if drawn else (points, points)
    order = sorted(range(len(models)), key=lambda number: -points[number])
    found = [{"model": models[n], "points": points[n], "low": low[n], "high": high[n]} for n in order]
    return [{key: round(float(value), 1) if key != "model" else value for key, value in one.items()} for one in found]


def _points(wins: np.ndarray) -> np.ndarray:
    """Of wins (M, M) of the row over the column; a tenth of a draw between all keeps strengths finite."""
    wins = wins + 0.05 * (1 - np.eye(len(wins)))
    strength = np.ones(len(wins))
    for _ in range(200):
        strength = wins.sum(1) / ((wins + wins.T) / (strength[:, None] + strength)).sum(1)
        strength = strength / np.exp(np.log(strength).mean())
    return np.asarray(400 * np.log10(strength))
