"""What is taken out of conversations before they are learned: a tone nobody wants, low quality, and what says the same.

Source: The Llama 3 Herd of Models, section 4.2.3 (emojis and exclamation marks, apologies balanced, quality by the
reward model's top quarter or a judge's full marks, and within clusters the best first, none too similar to one kept).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
_SORRY = re.compile(
    r"\b(?:i(?:'m| am) (?:so |very |really )?sorry|i apologi[sz]e|my apologies|sorry for)\b", re.IGNORECASE
)
_MOST_EMOJIS, _MOST_EXCLAMATIONS = 2, 0.5  # in an answer; a sentence
_GRADE = re.compile(r"[1-3]")

ASKED = {
    "quality": "Grade the last answer of this conversation from 1 (poor) to 3 (excellent): is it correct, does it do "
    "what was asked, is its tone right?",
    "difficulty": "Grade how hard it is to answer the last question of this conversation, from 1 (easy) to 3 (hard).",
}
"""What a judge is asked for; the conversation follows."""


def fault_of_tone(answer: str) -> str | None:
    """Why an answer's tone is not wanted, if it is not."""
    if len(_EMOJI.findall(answer)) > _MOST_EMOJIS:
        return "more than two emojis"
    marks, ends = answer.count("!"), len(re.findall(r"[.!?]+(?:\s|$)", answer))
    return "exclamation marks" if marks > 1 and marks > _MOST_EXCLAMATIONS * max(ends, 1) else None


def apologises(answer: str) -> bool:
    """Whether an answer says that it is sorry."""
    return _SORRY.search(answer.replace("’", "'")) is not None


def balanced(flags: Sequence[bool], share: float) -> list[bool]:
    """Which rows stay, so that at most `share` (0 to 1) of them have the flag; those that do are spread evenly."""
    flagged, others = [place for place, flag in enumerate(flags) if flag], len(flags) - sum(flags)
    most = len(flagged) if share >= 1 else min(len(flagged), int(others * share / (1 - share)))
    kept = {flagged[place * len(flagged) // most] for place in range(most)}
    return [not flag or place in kept for place, flag in enumerate(flags)]


def grade_of(answer: str) -> int | None:
    """A judge's grade, the last figure from 1 to 3 that it says."""
    found = _GRADE.findall(answer)
    return int(found[-1]) if found else None


def ranks(values: Sequence[float]) -> np.ndarray:
    """Of each value the share (0 to 1) of all values that are not above it."""
    array = np.asarray(values, np.float64)
    found: np.ndarray = np.searchsorted(np.sort(array), array, side="right") / max(len(array), 1)
    return found


def different(vectors: Tensor, worth: Sequence[float], *, similarity: float, clusters: int = 1) -> list[int]:
    """Places of the rows to keep, ascending: in each cluster from the worthiest down, those whose cosine with every
    kept one is below `similarity`; vectors (N, D).
    """
    vectors = F.normalize(vectors, dim=1)
    labels, order = clustered(vectors, clusters), np.argsort(-np.asarray(worth, np.float64), kind="stable")
    kept: list[int] = []
    for cluster in range(int(labels.max()) + 1 if len(labels) else 0):
        own: list[int] = []
        for place in (int(one) for one in order if labels[one] == cluster):
            if not own or float((vectors[own] @ vectors[place]).max()) < similarity:
                own.append(place)
        kept += own
    return sorted(kept)


def clustered(vectors: Tensor, count: int, *, turns: int = 20) -> np.ndarray:
    """A cluster's number for each vector (N, D) of length 1: k-means by cosine from the first row and those furthest
    from the ones before, so that the same rows give the same clusters. Equal vectors share one.
    """
    count, centres = max(1, min(count, len(vectors))), vectors[:1]
    nearest = (vectors @ centres.T).amax(1) if len(vectors) else vectors[:, 0]
    while len(centres) < count and len(vectors):
        new = vectors[[int(nearest.argmin())]]
        centres, nearest = torch.cat([centres, new]), torch.maximum(nearest, (vectors @ new.T)[:, 0])
    labels = torch.zeros(len(vectors), dtype=torch.int64)
    for _ in range(turns if count > 1 else 0):
        found = (vectors @ centres.T).argmax(1)
        if torch.equal(found, labels):
            break
        labels = found
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
    return labels.numpy()
