"""Rejection sampling: of K answers the reward model keeps the best.

Source: The Llama 3 Herd of Models, section 4.2.2 (K between 10 and 30 there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from herd.evals.answers import prompt_of, question_text, reference_of
from herd.post.prompts import origin_of
from herd.post.verify import RIGHT, Verifier, gain_over_random, verified


def best_of(
    questions: Sequence[dict], answers: Sequence[Sequence[str]], rewards: Sequence[Sequence[float]]
) -> list[dict]:
    """One conversation row per question with the answer of the highest reward, which stays beside it as `score`.

    Of equal rewards the first answer wins. Questions without any answer are left out.
    """
    rows = []
    for question, texts, scores in zip(questions, answers, rewards, strict=True):
        candidates = [(score, -place) for place, (text, score) in enumerate(zip(texts, scores, strict=True)) if text]
        if not candidates:
            continue
        score, place = max(candidates)
        chosen = texts[-place]
        messages = [*prompt_of(question), {"role": "assistant", "content": chosen}]
        row = {"messages": messages, "source": "reject", "score": round(float(score), 5)}
        rows.append(row | origin_of(question))
    return rows


def keep_best(rows: Sequence[dict], share: float) -> list[dict]:
    """The rows in the top `share` (0 to 1) by reward among those of their `kind`, in their old order.

    Per kind, because a reward model may like one kind of question better than another; rows without a kind are one.
    """
    thresholds = {}
    for kind in {row.get("kind") for row in rows}:
        scores = [row["score"] for row in rows if row.get("kind") == kind]
        thresholds[kind] = np.quantile(scores, 1 - share) if share < 1 else -np.inf
    return [row for row in rows if row["score"] >= thresholds[row.get("kind")]]


def selection_figures(
    questions: Sequence[dict],
    answers: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    verifier: Verifier | None = "answer",
) -> dict[str, float]:
    """What the selection was worth: mean reward of all samples and of the chosen, and, by a verifier, what all samples,
    the chosen and the best score (`f1_of_...` where it is F1 to a reference, else `checks_of_...`).

    `gain` is what the chosen score above a random pick on the `gain_prompts` whose samples differ, with its interval.
    """
    asked = [(q, t, r) for q, t, r in zip(questions, answers, rewards, strict=True) if t]
    figures: dict[str, list[Any]] = {
        "reward_of_samples": [np.mean(scores) for _, _, scores in asked],
        "reward_of_chosen": [max(scores) for _, _, scores in asked],
    }
    judged = [one for one in asked if verifier == "checks" or (verifier and reference_of(one[0]) is not None)]
    found: dict[str, float] = {}
    if judged and verifier:
        unit = "f1" if verifier == "answer" else "checks"
        scores, chosen = [verified(verifier, q, t) for q, t, _ in judged], [int(np.argmax(r)) for _, _, r in judged]
        figures |= {
            f"{unit}_of_samples": [np.mean(one) for one in scores],
            f"{unit}_of_chosen": [one[place] for one, place in zip(scores, chosen)],
            f"{unit}_of_best": [max(one) for one in scores],
        }
        gain, count = gain_over_random([q for q, _, _ in judged], scores, chosen)
        found = {"gain_prompts": count}
        found |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high} if count else {}
    means = {name: float(np.mean(values)) for name, values in figures.items() if values}
    return {name: round(value, 4) for name, value in {**means, **found}.items()}


def verified_figures(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many answers a verifier finds right, and for how many questions there is a right one to choose."""
    right = [[one >= RIGHT for one in several] for several in scores if several]
    found = {"right_of_samples": np.mean([np.mean(one) for one in right])}
    found |= {"right_of_best": np.mean([any(one) for one in right]), "all_right": np.mean([all(one) for one in right])}
    return {name: round(float(value), 4) for name, value in found.items()}


def where_samples_differ(
    rows: Sequence[dict], questions: Sequence[dict], answers: Sequence[Sequence[Any]]
) -> list[dict]:
    """Of the chosen rows those whose question got different answers (texts or scores): elsewhere nothing was chosen."""
    several = {question_text(q) for q, texts in zip(questions, answers, strict=True) if len({*texts} - {""}) > 1}
    return [row for row in rows if question_text(row) in several]
