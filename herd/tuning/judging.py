"""What tuning changed: the same rows before and after, paired, each figure with its interval.

Everything is worked out from one thing, how many nats a model needs for each document that was kept aside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from herd.data.loader import PackedLoader, Phase, Placed
from herd.data.shards import Documents, in_memory
from herd.errors import DataError
from herd.evals.likelihood import Continuation, likelihoods, tree_attention
from herd.evals.statistics import Interval, compared, summary
from herd.infer.build import with_attention
from herd.model.llama import Head, Llama, LlamaForCausalLM
from herd.parallel.launch import from_all
from herd.parallel.model import ParallelModel
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.lora import has_4_bits, has_adapters, merged_model
from herd.tuning.material import Material, Part
from herd.types import IGNORE, Batch

GENERAL = Path(__file__).with_name("general.txt")
"""Passages of many kinds, written for Herd and free for any use: what a model should not forget."""

_PASSAGE_CHARACTERS = 2000
_MOST_PASSAGES = 200
_BINS = 10
_RESAMPLES = 1000


class Figure(NamedTuple):
    """One figure before and after, and the difference over the same rows."""

    name: str
    better: Literal["higher", "lower"]
    before: Interval
    after: Interval
    difference: Interval
    p: float
    n: int

    @property
    def word(self) -> str:
        """`better`, `worse`, or that no difference is shown."""
        if self.difference.low <= 0 <= self.difference.high:
            return "no difference shown"
        return "better" if (self.difference.value > 0) == (self.better == "higher") else "worse"

    def as_dict(self) -> dict[str, Any]:
        """For `results.json`."""
        spans = {
            name: [one.value, one.low, one.high] for name, one in zip(("before", "after", "difference"), self[2:5])
        }
        return {"name": self.name, "better": self.better, "says": self.word, "p": self.p, "n": self.n} | spans


@dataclass(frozen=True)
class Measured:
    """Nats of every document to judge by, and of the general passages."""

    judged: np.ndarray
    general: np.ndarray


@dataclass(frozen=True)
class General:
    """The text that a model should not forget, in passages."""

    documents: Documents
    num_bytes: np.ndarray
    source: str


def general_text(file: Path | None, tokenizer: Tokenizer) -> General:
    """Passages of a text file, or those that come with Herd.

    Raises:
        DataError: the file is not there or has no text.
    """
    try:
        text = (file or GENERAL).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"general={file}: cannot be read as text ({error})") from None
    passages = [part.strip() for part in text.split("\n\n") if len(part.strip()) > 20]
    pieces = [
        part[start : start + _PASSAGE_CHARACTERS]
        for part in passages
        for start in range(0, len(part), _PASSAGE_CHARACTERS)
    ]
    step = max(len(pieces) / _MOST_PASSAGES, 1.0)
    pieces = [pieces[int(place * step)] for place in range(min(len(pieces), _MOST_PASSAGES))]
    if not pieces:
        raise DataError(f"general={file}: no paragraphs of text in it")
    tokens = [tokenizer.encode(piece, bos=True) for piece in pieces]
    documents = in_memory("general", tokens, tokenizer=tokenizer.fingerprint)
    sizes = [len(tokenizer.decode(ids[1:]).encode("utf-8", "replace")) for ids in tokens]
    return General(documents, np.maximum(sizes, 1), str(file) if file else "Herd's own passages")


@torch.no_grad()
def nats_of(
    model: Llama | ParallelModel,
    documents: Documents,
    *,
    row_tokens: int,
    micro_tokens: int,
    rank: int = 0,
    world: int = 1,
) -> np.ndarray:
    """The negative log-likelihood of what is learned in each document: (N,) float64, on every process."""
    nats = np.zeros(len(documents))
    if not len(documents):
        return nats
    phase = Phase(batch_tokens=row_tokens, row_tokens=row_tokens, mixture={"rows": 1.0})
    loader = PackedLoader(
        {"rows": documents}, [phase], micro_tokens=micro_tokens, columns=_owners, rank=rank, world=world
    )
    device = next(model.parameters()).device
    model.eval()
    for batch in loader.epoch():
        found, owner = model.run(_log_probs, batch.to(device))
        np.subtract.at(nats, owner.cpu().numpy(), found.double().cpu().numpy())
    total: np.ndarray = np.sum(from_all(nats), axis=0)
    return total


def _owners(placed: list[Placed], shape: tuple[int, int]) -> dict[str, Tensor]:
    owner = np.zeros(shape, np.int64)
    for item in placed:
        owner[item.row, item.offset : item.offset + item.length] = item.document
    return {"owner": torch.from_numpy(owner)}


def _log_probs(hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
    learned = batch.labels != IGNORE
    return head.log_probs(hidden[learned], batch.labels[learned]), batch.columns["owner"][learned]


def measured(model: Llama | ParallelModel, material: Material, general: General, **how: int) -> Measured:
    """What a model makes of the rows to judge by, and of the general text."""
    documents = material.judged.documents
    plain = _plain(model) if material.kind == "label" and documents.trained is not None else None
    judged = nats_of(model, documents, **how) if plain is None else label_nats(plain, documents)
    return Measured(judged, nats_of(model, general.documents, **how))


def label_nats(model: LlamaForCausalLM, documents: Documents) -> np.ndarray:
    """As `nats_of`, where many documents begin alike: what they have in common is computed once."""
    asked = []
    for number in range(len(documents)):
        mask = documents.is_trained(number)
        assert mask is not None
        places = np.flatnonzero(mask)
        asked.append(Continuation(documents.tokens(number)[: places[-1] + 1].tolist(), int(places[0])))
    model.eval()
    return np.array([-one.nats for one in likelihoods(with_attention(model, tree_attention), asked)])


def _plain(model: Llama | ParallelModel) -> LlamaForCausalLM | None:
    """The model whole and in memory as it is, adapters merged; None where it is in parts, or its base in 4 bits."""
    if not isinstance(model, LlamaForCausalLM) or has_4_bits(model):
        return None
    return merged_model(model) if has_adapters(model) else model  # type: ignore[return-value]


def write_measured(found: Measured) -> dict[str, Any]:
    """As `read_measured` reads it."""
    return {"judged": found.judged.tolist(), "general": found.general.tolist()}


def read_measured(found: Mapping[str, Any]) -> Measured:
    """What an interrupted run has measured."""
    return Measured(np.array(found["judged"]), np.array(found["general"]))


def figures(material: Material, general: General, before: Measured, after: Measured) -> list[Figure]:
    """What changed, on the rows to judge by and on the general text."""
    part, pair = material.judged, (before, after)
    if material.kind == "label":
        chances = [probabilities(part, one) for one in pair]
        right = [(chance.argmax(1) == part.right).astype(float) for chance in chances]
        loss = [-np.log(np.maximum(chance[np.arange(len(part)), part.right], 1e-12)) for chance in chances]
        found = [
            _figure("accuracy", "higher", right[0], right[1], part.groups),
            _figure("nats of the right label", "lower", loss[0], loss[1], part.groups),
        ]
    elif material.kind == "preferences":
        wins = [_chosen_wins(part, one) for one in pair]
        found = [_figure("better response the likelier one, per token", "higher", wins[0], wins[1], part.groups)]
    else:
        what = "text" if material.kind == "text" else "answers"
        bits = [one.judged / math.log(2) / part.num_bytes for one in pair]
        found = [_figure(f"bits per byte of held-out {what}", "lower", bits[0], bits[1], part.groups)]
    forgotten = [one.general / math.log(2) / general.num_bytes for one in pair]
    groups = [str(number) for number in range(len(general.num_bytes))]
    return [*found, _figure("bits per byte of general text", "lower", forgotten[0], forgotten[1], groups)]


def _figure(
    name: str, better: Literal["higher", "lower"], before: np.ndarray, after: np.ndarray, groups: Sequence[str]
) -> Figure:
    own = list(groups) if len(set(groups)) < len(groups) else None
    difference = compared(after.tolist(), before.tolist(), own)
    spans = [summary(values.tolist(), own) for values in (before, after)]
    return Figure(name, better, spans[0], spans[1], difference.difference, difference.p, len(before))


def probabilities(part: Part, found: Measured) -> np.ndarray:
    """The probability of each label for each row, of all labels together 1: (N, L)."""
    scores = -found.judged.reshape(len(part), part.per_row)
    scores = np.exp(scores - scores.max(1, keepdims=True))
    result: np.ndarray = scores / scores.sum(1, keepdims=True)
    return result


def _chosen_wins(part: Part, found: Measured) -> np.ndarray:
    documents = part.documents
    tokens = [int(np.sum(mask)) if (mask := documents.is_trained(n)) is not None else 1 for n in range(len(documents))]
    mean = (found.judged / np.maximum(tokens, 1)).reshape(-1, 2)
    wins: np.ndarray = (mean[:, 0] < mean[:, 1]).astype(float)
    return wins


def confusion(part: Part, chances: np.ndarray) -> np.ndarray:
    """How many rows of each label (first axis) were given each label: (L, L)."""
    counts = np.zeros((part.per_row, part.per_row), np.int64)
    np.add.at(counts, (part.right, chances.argmax(1)), 1)
    return counts


class Bin(NamedTuple):
    """Rows whose likeliest label has about the same probability."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def calibration(part: Part, chances: np.ndarray) -> tuple[Interval, list[Bin]]:
    """The expected calibration error with its 95 % interval (bootstrap over rows), and the bins it is made of.

    Source: Guo et al. 2017, ten bins of equal width.
    """
    sure, right = chances.max(1), (chances.argmax(1) == part.right).astype(float)
    place = np.minimum((sure * _BINS).astype(int), _BINS - 1)

    def error(rows: np.ndarray) -> float:
        gaps = np.bincount(place[rows], sure[rows] - right[rows], minlength=_BINS)
        return float(np.abs(gaps).sum() / len(rows))

    generator, count = np.random.default_rng(0), len(part)
    drawn = [error(generator.integers(count, size=count)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = error(np.arange(count))
    bins = [
        Bin(number / _BINS, (number + 1) / _BINS, int(here.sum()), float(sure[here].mean()), float(right[here].mean()))
        for number in range(_BINS)
        if (here := place == number).any()
    ]
    return Interval(value, min(float(low), value), float(high), float(np.std(drawn)), count), bins
