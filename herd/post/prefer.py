"""Preference pairs from a model's own answers, as a verifier judges them: near the policy, and without near-ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from herd.evals.answers import prompt_of, reference_of
from herd.post.prompts import origin_of
from herd.post.verify import RIGHT

STRENGTHS = ((0.6, "significantly_better"), (0.35, "better"), (0.15, "slightly_better"), (0.0, "marginally_better"))
"""From which difference of scores (0 to 1) on a pair is called how strong."""


def strength(gap: float) -> str:
    """How much better the chosen answer is, from the difference of the two scores."""
    return next(name for least, name in STRENGTHS if gap >= least)


def pair_of(
    row: Mapping[str, Any], answers: Sequence[str], scores: Sequence[float], min_gap: float
) -> dict[str, Any] | None:
    """The best answer against the worst, None where they differ by less than `min_gap`: nearly as good is no
    preference.

    Where a reference is known and no answer is right, it stands above both as `edited`. Of equal scores the first
    answer counts.
    """
    told = [(score, answer) for answer, score in zip(answers, scores, strict=True) if answer]
    if not told:
        return None
    best, worst = max(told, key=lambda one: one[0]), min(told, key=lambda one: one[0])
    gap = best[0] - worst[0]
    if gap < min_gap or best[1] == worst[1]:
        return None
    pair: dict[str, Any] = {
        "prompt": prompt_of(row),
        "chosen": best[1],
        "rejected": worst[1],
        "strength": strength(gap),
    }
    pair |= {"chosen_score": round(best[0], 4), "rejected_score": round(worst[0], 4)}
    reference = reference_of(row)
    if reference is not None and "instruction_id_list" not in row and best[0] < RIGHT:
        messages = row.get("messages") or []
        pair["edited"] = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else reference
    return pair | origin_of(row)
