"""Answers as packed batches, with the columns that `herd.train.objectives.policy_gradient` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from herd.data.packing import pack
from herd.rollout.sample import Sample
from herd.types import IGNORE, Batch

Normalise = Literal["token", "answer", "length"]
"""What a step's loss is the mean of: tokens (DAPO), answers by their token mean (GRPO), or answers by their sum over
the longest answer allowed (Dr. GRPO)."""


def batches_of(
    samples: Sequence[Sample],
    advantages: Sequence[float],
    *,
    row_tokens: int,
    micro_tokens: int,
    pad: int,
    normalise: Normalise,
    answer_tokens: int,
    fresh: bool,
) -> list[Batch]:
    """Samples in rows of `row_tokens`, each its own document; batches of `micro_tokens`, cut where all rows are empty.

    Columns (B, T): `advantage`, `sampled` (the engine's log-probability), `weight` and `counted` (the loss is the
    weighted sum over the count), `fresh` (the weights are those that sampled).
    """
    lengths = np.array([len(sample.prompt) + len(sample.tokens) - 1 for sample in samples])
    rows = pack(lengths, row_tokens)
    places: list[list[int]] = [rows[number].tolist() for number in range(len(rows))]
    per_batch = max(1, micro_tokens // row_tokens)
    found = []
    for first in range(0, len(places), per_batch):
        part = places[first : first + per_batch]
        width = max(int(lengths[row].sum()) for row in part)
        batch = _empty(len(part), width, pad)
        for row, inside in enumerate(part):
            offset = 0
            for document, index in enumerate(inside):
                here = slice(offset, offset + int(lengths[index]))
                _put(batch, row, here, document, samples[index])
                _value(batch, row, here, samples[index], advantages[index], normalise, answer_tokens)
                offset = here.stop
        batch.columns["fresh"] = torch.full((len(part), width), fresh)
        found.append(batch)
    return found


def _empty(rows: int, width: int, pad: int) -> Batch:
    shape = (rows, width)
    return Batch(
        tokens=torch.full(shape, pad),
        labels=torch.full(shape, IGNORE),
        positions=torch.zeros(shape, dtype=torch.int64),
        document_ids=torch.full(shape, -1, dtype=torch.int32),
        columns={name: torch.zeros(shape) for name in ("advantage", "sampled", "weight", "counted")},
    )


def _put(batch: Batch, row: int, here: slice, document: int, sample: Sample) -> None:
    ids = torch.tensor([*sample.prompt, *sample.tokens])
    learned = torch.tensor([*[False] * len(sample.prompt), *sample.learned])
    batch.tokens[row, here] = ids[:-1]
    batch.labels[row, here] = torch.where(learned, ids, IGNORE)[1:]
    batch.positions[row, here] = torch.arange(len(ids) - 1)
    batch.document_ids[row, here] = document


def _value(
    batch: Batch, row: int, here: slice, sample: Sample, advantage: float, normalise: Normalise, answer_tokens: int
) -> None:
    learned = batch.labels[row, here] != IGNORE
    sampled = torch.zeros(len(learned))
    sampled[len(sample.prompt) - 1 :] = torch.tensor(sample.log_probs)
    number = int(learned.sum())
    weight = {"token": 1.0, "answer": 1 / number, "length": 1 / (answer_tokens * sample.turns)}[normalise]
    batch.columns["advantage"][row, here] = learned * advantage
    batch.columns["sampled"][row, here] = sampled
    batch.columns["weight"][row, here] = learned * weight
    counted = learned.float()
    if normalise != "token":
        counted[int(learned.nonzero()[0]) + 1 :] = 0.0
    batch.columns["counted"][row, here] = counted
