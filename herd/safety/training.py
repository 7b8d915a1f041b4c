"""Training a small guard: rows to a classifier on an encoder, its threshold, and how well it does on rows held out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.config import settings
from herd.data.split import kept_aside
from herd.errors import DataError
from herd.log import progress, say
from herd.model.encoder import Encoder, TextClassifier
from herd.safety.baselines import Keywords, TfIdf
from herd.safety.curve import areas, as_array, curve, rates, threshold_at
from herd.safety.guard import Guard
from herd.safety.policy import PLACES, SAFE, UNSAFE, Policy, Where
from herd.safety.rows import Row

_LONGEST = 128  # tokens of a row that are learned from
_FEW = 20  # harmless held-out rows of a place, below which its threshold is another's
_LEAST = 5


@settings
class GuardTraining:
    """How a small guard is trained."""

    epochs: float = 2.0
    """Passes over the rows in which the encoder's layers learn too; 0 leaves the encoder as it is (seconds)."""
    learning_rate: float = 5e-5
    """Peak rate of the encoder's layers (AdamW)."""
    batch_rows: int = 32
    """Rows of an optimizer step."""
    decay: float = 1e-4
    """Weight of the squared weights in the classifier's loss."""
    held_out: float = 0.2
    """Share (0 to 1) of the rows that the threshold is chosen on and the curve drawn from, whole groups of them."""
    false_refusal: float = 0.05
    """Share (0 to 1) of harmless held-out rows that may be flagged: it sets the threshold."""
    narrow_tokens: int = 0
    """Windows of so many tokens are judged beside whole ones, for a sentence hidden in a long text; 0 for none."""
    seed: int = 0
    """Seed of the split and the order."""

    def __post_init__(self) -> None:
        if (
            self.epochs < 0
            or self.learning_rate <= 0
            or self.batch_rows < 1
            or self.decay < 0
            or self.narrow_tokens < 0
        ):
            raise ValueError("epochs, decay and narrow_tokens must be 0 or more, learning_rate and batch_rows above 0")
        if not 0 < self.held_out < 1 or not 0 <= self.false_refusal < 1:
            raise ValueError("held_out must lie between 0 and 1, false_refusal from 0 to below 1")


@dataclass(frozen=True)
class Trained:
    """A guard, and what was measured of it."""

    guard: Guard
    report: dict[str, Any]


def train_guard(
    rows: Sequence[Row], encoder: Encoder, policy: Policy, options: GuardTraining, judged: Sequence[Row] = ()
) -> Trained:
    """Learn, choose the threshold, and measure; `judged` are rows to hold out instead of a share of `rows`.

    The encoder's own weights change where `epochs` is above 0.

    Raises:
        DataError: too few rows: harmful and harmless ones are needed on both sides of the split.
    """
    began = time.monotonic()
    learned, held = _split(rows, options) if not judged else (list(rows), list(judged))
    for name, some in (("learn from", learned), ("hold out", held)):
        if len({row.is_unsafe for row in some}) < 2:
            kind = "harmful" if some and some[0].is_unsafe else "harmless"
            raise DataError(f"all {len(some):,} rows to {name} are {kind}; expected rows of both kinds")
    labels = _labels(learned, policy)
    allowed = _allowed(learned, labels)
    if options.epochs:
        _tune(encoder, learned, allowed, options)
    classifier = _head(encoder, learned, labels, allowed, options)
    guard = Guard(classifier, policy, {}, narrow_tokens=options.narrow_tokens)
    report: dict[str, Any] = {"policy": policy.name, "learned": len(learned), "held_out": len(held)}
    report |= _measured(guard, learned, held, options)
    report["seconds"] = round(time.monotonic() - began, 1)
    return Trained(guard, report)


def _split(rows: Sequence[Row], options: GuardTraining) -> tuple[list[Row], list[Row]]:
    """Harmful and harmless groups each for themselves, so that both are on both sides."""
    kinds = {row.group: row.is_unsafe for row in rows}
    aside = np.zeros(len(rows), dtype=bool)
    for kind in (True, False):
        places = [place for place, row in enumerate(rows) if kinds[row.group] == kind]
        groups = [rows[place].group for place in places]
        aside[places] = kept_aside(groups, options.held_out * len(places), f"guard {options.seed}")
    return [row for row, out in zip(rows, aside) if not out], [row for row, out in zip(rows, aside) if out]


def _labels(rows: Sequence[Row], policy: Policy) -> list[str]:
    counts = Counter(code for row in rows for code in row.codes)
    known = [code for code in policy.categories if counts[code]]
    if missing := [code for code in policy.categories if not counts[code]]:
        if known or not counts[UNSAFE]:
            say(f"  no rows of {', '.join(missing)}: the guard will not know these")
        else:
            say("  the rows say safe and unsafe only: the guard will know no categories")
    return [SAFE, *known] if known else [SAFE, UNSAFE]


def _allowed(rows: Sequence[Row], labels: Sequence[str]) -> Tensor:
    """(N, classes) bool: the classes that are right for a row; of a harmful one without category any but `safe`."""
    table = torch.zeros(len(rows), len(labels), dtype=torch.bool)
    for number, row in enumerate(rows):
        right = {SAFE} if not row.codes else row.codes & set(labels) or set(labels) - {SAFE}
        table[number, [labels.index(code) for code in right]] = True
    return table


def _loss(outputs: Tensor, allowed: Tensor, share: Tensor) -> Tensor:
    """-log of the probability of all classes that are right, harmful and harmless rows counting alike."""
    right = outputs.masked_fill(~allowed, -torch.inf).logsumexp(1)
    return (share * (outputs.logsumexp(1) - right)).sum()


def _shares(allowed: Tensor) -> Tensor:
    """(N,) the weight of each row; harmful and harmless rows sum to one half each."""
    safe = allowed[:, 0]
    return torch.where(safe, 0.5 / safe.sum(), 0.5 / (~safe).sum())


def _head(
    encoder: Encoder, rows: Sequence[Row], labels: list[str], allowed: Tensor, options: GuardTraining
) -> TextClassifier:
    vectors = encoder.embed([row.text for row in rows], label="embed")
    share = _shares(allowed)
    weight = torch.zeros(len(labels), encoder.size, requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = _loss(vectors @ weight.T + bias, allowed, share) + options.decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return TextClassifier(encoder, labels, weight.detach(), bias.detach())


def _tune(encoder: Encoder, rows: Sequence[Row], allowed: Tensor, options: GuardTraining) -> None:
    """Let the encoder's layers learn the classes, under a head that is thrown away afterwards."""
    generator = torch.Generator().manual_seed(options.seed)
    texts = [entry.ids[: _LONGEST - 1] + entry.ids[-1:] if len(entry.ids) > _LONGEST else entry.ids
             for entry in encoder.tokenizer.encode_batch_fast([row.text for row in rows])]  # fmt: skip
    share = _shares(allowed) * len(rows)
    head = torch.nn.Linear(encoder.size, allowed.shape[1])
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    layers = [weight.requires_grad_() for weight in encoder.model.encoder.parameters()]
    groups = [{"params": layers, "lr": options.learning_rate}, {"params": [*head.parameters()], "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = max(1, math.ceil(options.epochs * len(rows) / options.batch_rows))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
    )
    with progress("tune", total=steps, unit="steps") as bar:
        for places in _batches(texts, steps, options.batch_rows, generator):
            outputs = 10 * head(encoder.vectors([texts[place] for place in places]))
            value = _loss(outputs, allowed[places], share[places]) / len(places)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(layers, 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(1, loss=round(float(value.detach()), 3))
    encoder.model.requires_grad_(False)


def _batches(texts: Sequence[list[int]], steps: int, size: int, generator: torch.Generator) -> list[list[int]]:
    """The rows of each step: shuffled, then of like length within stretches of some batches."""
    found: list[list[int]] = []
    while len(found) < steps:
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), 8 * size):
            stretch = sorted(order[start : start + 8 * size], key=lambda place: len(texts[place]))
            found += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    return found[:steps]


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measured(guard: Guard, learned: Sequence[Row], held: Sequence[Row], options: GuardTraining) -> dict[str, Any]:
    """Thresholds, curves and areas by place, beside a keyword list and TF-IDF that learned from the same rows."""
    texts, unsafe = [row.text for row in learned], [row.is_unsafe for row in learned]
    words = Keywords(guard.policy.keywords) if guard.policy.keywords else Keywords.of_rows(texts, unsafe)
    plain = TfIdf(texts, unsafe)
    places: dict[str, Any] = {}
    categories: dict[str, Any] = {}
    for where, some, wrong in _by_place(guard, held):
        verdicts = guard.judge([row.text for row in some], where)
        scores = as_array([verdict.probability for verdict in verdicts])
        limit = guard.thresholds[where] = threshold_at(scores, wrong, options.false_refusal)
        told = [row.text for row in some]
        several = {"guard": scores, "keywords": words.scores(told), "tfidf": plain.scores(told)}
        places[where] = {
            "at_threshold": rates(scores, wrong, limit),
            "areas": areas(several, wrong, seed=options.seed),
            "curves": {name: curve(values, wrong) for name, values in several.items()},
        }
        categories |= _by_category(guard, some, verdicts, limit, categories)
    first = next(iter(guard.thresholds.values()))
    for where in PLACES:
        guard.thresholds.setdefault(where, first)
    return {"places": places, "categories": categories, "thresholds": dict(guard.thresholds)}


def _by_place(guard: Guard, held: Sequence[Row]) -> list[tuple[Where, list[Row], np.ndarray]]:
    """The places that have enough rows for a threshold of their own, their rows, and which of these are violations.

    Raises:
        DataError: none has.
    """
    found = []
    for where in PLACES:
        counted = guard.enabled(where)
        some = [row for row in held if row.where == where]
        wrong = as_array([row.violates(counted) for row in some]) > 0
        if counted and wrong.any() and not wrong.all():
            found.append((where, some, wrong))
    enough = [one for one in found if (~one[2]).sum() >= _FEW]
    most = max((int((~wrong).sum()) for _, _, wrong in found), default=0)
    if not enough and most < _LEAST:
        raise DataError(
            f"{most} harmless held-out rows: too few to choose a threshold, which needs {_FEW}; give more rows"
        )
    if not enough:
        say(f"  only {most} harmless held-out rows: the threshold is rough; some hundred would make it sure")
    return enough or [one for one in found if (~one[2]).sum() == most]


def _by_category(
    guard: Guard, rows: Sequence[Row], verdicts: Sequence[Any], limit: float, before: dict[str, Any]
) -> dict[str, Any]:
    found = {}
    for code in guard.labels:
        mine = [verdict for row, verdict in zip(rows, verdicts) if code in row.codes]
        if mine and code not in before and code in guard.policy.categories:
            found[code] = {
                "name": guard.policy.categories[code].name,
                "rows": len(mine),
                "flagged": round(sum(verdict.probability >= limit for verdict in mine) / len(mine), 4),
                "named": round(sum(verdict.categories[:1] == (code,) for verdict in mine) / len(mine), 4),
            }
    return found


def told(report: dict[str, Any]) -> None:
    """Say what was measured."""
    for where, found in report["places"].items():
        at, area = found["at_threshold"], found["areas"]
        others = ", ".join(f"{name} {area[name]['auc']:.3f}" for name in ("tfidf", "keywords"))
        say(
            f"  {where}: area {area['guard']['auc']:.3f} ({area['guard']['low']:.3f} to {area['guard']['high']:.3f}; "
            f"{others}); at threshold {at['threshold']:.3f} violation {at['violation']:.1%}, false refusal "
            f"{at['false_refusal']:.1%} of {at['false_refusal_rows']:,} held-out rows"
        )


__all__ = ["GuardTraining", "Trained", "Where", "told", "train_guard"]
