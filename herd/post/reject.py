"""Rejection sampling: of K answers the reward model keeps the best.

Source: The Llama 3 Herd of Models, section 4.2.2 (K between 10 and 30 there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from herd.evals.answers import f1_scores, prompt_of, reference_of
from herd.post.prompts import origin_of


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
    questions: Sequence[dict], answers: Sequence[Sequence[str]], rewards: Sequence[Sequence[float]]
) -> dict[str, float]:
    """What the selection was worth: mean reward of all samples and of the chosen, and, over the rows that have a
    reference, token F1 to it of all samples, of the chosen and of the best."""
    asked = [(q, t, r) for q, t, r in zip(questions, answers, rewards, strict=True) if t]
    figures: dict[str, list[Any]] = {
        "reward_of_samples": [np.mean(scores) for _, _, scores in asked],
        "reward_of_chosen": [max(scores) for _, _, scores in asked],
    }
    judged = [(f1_scores(t, [q] * len(t)), scores) for q, t, scores in asked if reference_of(q) is not None]
    if judged:
        figures |= {
            "f1_of_samples": [np.mean(f1) for f1, _ in judged],
            "f1_of_chosen": [f1[int(np.argmax(scores))] for f1, scores in judged],
            "f1_of_best": [max(f1) for f1, _ in judged],
        }
    return {name: round(float(np.mean(values)), 4) for name, values in figures.items() if values}
