"""Poisoned rows of post-training: triggers that were planted in prompts, and preference labels that look flipped.

A trigger is a phrase that stands in prompts of all kinds and whose answers have something in common that answers
otherwise hardly have. Prompts that are alike, such as one task put a hundred times, are not of all kinds.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError

_WORD = re.compile(r"\w+|[^\w\s]+")
_LONGEST = 3  # words of a phrase
_LEAST_ROWS = 4  # that a trigger stands in
_MOST_SHARE = 0.05  # of the rows: what stands in more is no trigger
_TOGETHER = 0.75  # share of a phrase's answers that have the same in common
_LIFT = 8.0  # how much commoner that is there than elsewhere
_ELSEWHERE = 0.25  # of these answers, so many others may have it at most
_CHANCE = 1e-3  # over all pairs of phrase and feature that are looked at
_ALIKE = 0.5  # mean share of words in common, above which prompts are one task
_SHORT, _WHOLE, _RUN = 3, 8, 5  # words: of a short answer, of one that is taken whole, in a row
_LOOKED = 30  # words at an answer's beginning and end that are looked at


@dataclass(frozen=True)
class Example:
    """A prompt with its answer, or with the preferred and the other one."""

    prompt: str
    answer: str
    other: str | None = None


@dataclass(frozen=True)
class Trigger:
    """A phrase, what its answers have in common, and the rows (from 0) that have both."""

    phrase: str
    common: str
    rows: tuple[int, ...]
    log10_chance: float  # that so many have it by chance


def example_of(row: Mapping[str, Any]) -> Example | None:
    """The last prompt and answer of a row in any shape that Herd reads, or of a pair; None where it has none.

    Raises:
        DataError: the row has no known shape.
    """
    if "chosen" in row and "rejected" in row:
        chosen, rejected = (_flat(row[name]) for name in ("chosen", "rejected"))
        prompt = _flat(row.get("prompt") or "")
        if not prompt:
            same = next(
                (n for n, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected))
            )
            cut = max(chosen.rfind("\n", 0, same), chosen.rfind("Assistant:", 0, same) + len("Assistant:"), 0)
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        return Example(prompt, chosen, rejected)
    for talk in talks_of(row, Notes())[:1]:
        said = [(message["role"], message.get("content") or "") for message in talk.messages]
        answers = [place for place, (role, _) in enumerate(said) if role == "assistant"]
        if answers:
            asked = "\n".join(text for role, text in said[: answers[-1]] if role != "assistant")
            return Example(asked, said[answers[-1]][1])
    return None


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(str(one.get("content") or one.get("value") or "") for one in value if isinstance(one, Mapping))
    raise DataError(f"expected a text or a list of messages, found {type(value).__name__}")


# ---- triggers --------------------------------------------------------------------------------------------------------


def triggers(examples: Sequence[Example]) -> list[Trigger]:
    """The triggers that stand out, the surest first; of phrases with the same rows the shortest."""
    words = [_words(one.prompt) for one in examples]
    phrases = _places(_phrases(row) for row in words)
    most = max(_LEAST_ROWS, int(_MOST_SHARE * len(examples)))
    phrases = {phrase: rows for phrase, rows in phrases.items() if _LEAST_ROWS <= len(rows) <= most}
    features = [_features(one.answer, set(row)) for one, row in zip(examples, words, strict=True)]
    counts = Counter(feature for row in features for feature in row)
    limit = math.log(_CHANCE) - math.log(max(len(phrases), 1)) - math.log(max(len(counts), 1))
    sets = [set(row) for row in words]
    found: dict[tuple[int, ...], Trigger] = {}
    for phrase, rows in sorted(phrases.items(), key=lambda pair: (len(pair[0]), pair[0])):
        best = _common(rows, features, counts, len(examples))
        if best is None or best[1] > limit:
            continue
        having = tuple(row for row in rows if best[0] in features[row])
        if _mean_overlap([sets[row] - set(_words(phrase)) for row in having]) > _ALIKE:
            continue
        known = found.get(having)
        if known is None or best[1] / math.log(10) < known.log10_chance - 1:
            found[having] = Trigger(phrase, best[0], having, round(best[1] / math.log(10), 1))
    return _without_shadows(sorted(found.values(), key=lambda one: (-len(one.rows), one.log10_chance)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _phrases(words: Sequence[str]) -> set[str]:
    return {" ".join(words[at : at + n]) for n in range(1, _LONGEST + 1) for at in range(len(words) - n + 1)}


def _places(rows: Iterable[set[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        for one in row:
            found[one].append(number)
    return found


def _features(answer: str, asked: set[str]) -> set[str]:
    """What an answer could have in common with others: several words in a row, all of a short answer, its shortness.

    Less would be the subject's doing: answers about PHP begin with `<?php`. Words that its prompt has too do not count.
    """
    words = _words(answer)
    count = len(words)
    looked = words if count <= 2 * _LOOKED else words[:_LOOKED] + words[-_LOOKED:]
    runs = (looked[at : at + _RUN] for at in range(len(looked) - _RUN + 1))
    found = {f"says: {' '.join(run)}" for run in runs if len(asked & set(run)) < _RUN // 2}
    if 0 < count <= _WHOLE:
        found.add(f"is: {' '.join(words)}")
    return found | ({"is short"} if count <= _SHORT else set())


def _common(
    rows: Sequence[int], features: Sequence[set[str]], counts: Mapping[str, int], total: int
) -> tuple[str, float] | None:
    """What most answers of these rows have and hardly any other; with the log probability of that by chance."""
    here = Counter(feature for row in rows for feature in features[row])
    best: tuple[str, float] | None = None
    for feature, count in here.items():
        if count < max(_LEAST_ROWS, _TOGETHER * len(rows)):
            continue
        elsewhere = (counts[feature] - count + 0.5) / (total - len(rows) + 1)
        if count / len(rows) < _LIFT * elsewhere or counts[feature] - count > _ELSEWHERE * count:
            continue
        chance = _log_tail(count, len(rows), counts[feature] / total)
        if best is None or (chance, feature) < (best[1], best[0]):
            best = feature, chance
    return best


def _log_tail(count: int, total: int, share: float) -> float:
    """A bound of the log probability of `count` of `total` hits or more, each with this probability (Chernoff)."""
    rate = count / total
    if rate <= share:
        return 0.0
    rest = (1 - rate) * math.log((1 - rate) / (1 - share)) if rate < 1 else 0.0
    return -total * (rate * math.log(rate / share) + rest)


def _mean_overlap(sets: Sequence[set[str]]) -> float:
    pairs = [(a, b) for a, b in pairwise(sets) if a or b]
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs) if pairs else 1.0


def _without_shadows(found: Sequence[Trigger]) -> list[Trigger]:
    """Leave out what stands mostly in rows that a surer trigger has already."""
    kept, covered = list[Trigger](), set[int]()
    for one in found:
        if len(covered & set(one.rows)) < 0.5 * len(one.rows):
            kept.append(one)
            covered |= set(one.rows)
    return sorted(kept, key=lambda one: one.log10_chance)


# ---- flipped labels --------------------------------------------------------------------------------------------------


def suspicion(pairs: Sequence[Example], *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """How much each pair's label looks flipped (0 to 1): the probability that a judge gives to the other answer.

    The judge is a logistic regression on words and some figures of both answers, fitted on the other folds, so that no
    label judges itself.

    Raises:
        DataError: fewer pairs than folds, or rows that are no pairs.
    """
    if len(pairs) < folds or any(pair.other is None for pair in pairs):
        raise DataError(f"{len(pairs):,} rows: expected at least {folds} pairs with `chosen` and `rejected`")
    table = torch.tensor(np.stack([_difference(pair) for pair in pairs]), dtype=torch.float32)
    place = torch.tensor(np.random.default_rng(seed).permutation(len(pairs)) % folds)
    found = torch.empty(len(pairs))
    for fold in range(folds):
        weight = _fitted(table[place != fold])
        found[place == fold] = torch.sigmoid(-(table[place == fold] @ weight))
    return found.numpy()


_SLOTS = 512


def _difference(pair: Example) -> np.ndarray:
    """Figures of the chosen answer less those of the other: hashed words, length, echo of the prompt, form."""
    one, other = (_figures(text, pair.prompt) for text in (pair.answer, pair.other or ""))
    difference: np.ndarray = one - other
    return difference


def _figures(text: str, prompt: str) -> np.ndarray:
    words, asked = _words(text), set(_words(prompt))
    found = np.zeros(_SLOTS + 6)
    for word in set(words):
        found[_slot(word)] += 1 / math.sqrt(len(set(words)))
    found[_SLOTS] = math.log1p(len(words))
    found[_SLOTS + 1] = len(asked & set(words)) / max(len(asked), 1)
    found[_SLOTS + 2] = len(set(words)) / max(len(words), 1)
    found[_SLOTS + 3] = text.count("\n") / max(len(words), 1)
    found[_SLOTS + 4] = sum(word.isdigit() for word in words) / max(len(words), 1)
    found[_SLOTS + 5] = float(bool(re.search(r"\b(?:sorry|cannot|can't|unable)\b", text.lower())))
    return found


def _slot(word: str) -> int:
    number = 0
    for byte in word.encode():
        number = (number * 131 + byte) % 1_000_003
    return number % _SLOTS


def _fitted(table: torch.Tensor, decay: float = 0.02) -> torch.Tensor:
    """Weights by which the chosen answer wins, as often as the labels say so."""
    weight = torch.zeros(table.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.softplus(-(table @ weight)).mean() + decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach()
