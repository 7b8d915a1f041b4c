"""Rejection sampling: of K answers the reward model keeps the best.

Source: The Llama 3 Herd of Models, section 4.2.2 (K between 10 and 30 there).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from herd.evals.qa import f1_scores, prompt_of


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
        kept = {key: question[key] for key in ("group", "name", "kind")}
        rows.append({"messages": messages, "source": "reject", "score": round(float(score), 5), **kept})
    return rows


def keep_best(rows: Sequence[dict], share: float) -> list[dict]:
    """The rows in the top `share` (0 to 1) by reward among those of their kind, in their old order.

    Per kind, because a reward model may like one kind of question better than another.
    """
    thresholds = {}
    for kind in {row["kind"] for row in rows}:
        scores = [row["score"] for row in rows if row["kind"] == kind]
        thresholds[kind] = np.quantile(scores, 1 - share) if share < 1 else -np.inf
    return [row for row in rows if row["score"] >= thresholds[row["kind"]]]


def selection_figures(
    questions: Sequence[dict], answers: Sequence[Sequence[str]], rewards: Sequence[Sequence[float]]
) -> dict[str, float]:
    """What the selection was worth by token F1 to the references: mean of all samples, of the chosen, of the best."""
    mean, chosen, best = [], [], []
    for question, texts, scores in zip(questions, answers, rewards, strict=True):
        f1 = f1_scores(texts, [question] * len(texts))
        mean.append(np.mean(f1))
        chosen.append(f1[int(np.argmax(scores))])
        best.append(max(f1))
    return {
        "f1_of_samples": round(float(np.mean(mean)), 4),
        "f1_of_chosen": round(float(np.mean(chosen)), 4),
        "f1_of_best": round(float(np.mean(best)), 4),
    }
