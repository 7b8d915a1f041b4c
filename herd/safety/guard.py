"""A guard: an encoder with a classifier over a policy's categories, that judges texts and says why.

guard = open_guard("runs/guard")
guard.judge(["How do I kill a process?"])[0].flagged           # False
guard.judge(texts, "output", categories=["S1", "S9"])          # only these count
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.config import to_dict
from herd.errors import CheckpointError, ConfigError
from herd.formats.encoder import load_head, open_encoder, save_encoder, save_head
from herd.model.encoder import Encoder, TextClassifier, round_to_int8
from herd.run import atomic_write
from herd.safety.policy import PLACES, SAFE, UNSAFE, Category, Policy, Where, only
from herd.safety.readings import joined_readings, readings
from herd.safety.words import Words

FORMAT = 1
FILE = "guard.json"
_WINDOW = 512
"""Tokens that are judged at once; of a longer text windows that overlap by a quarter."""


@dataclass(frozen=True)
class Verdict:
    """What a guard says of one text."""

    flagged: bool
    probability: float  # that it violates the categories that counted, 0 to 1
    threshold: float  # from which it is flagged
    categories: tuple[str, ...]  # codes, the likeliest first; of a text that is not flagged too
    where: Where
    reading: str = "plain"  # `plain`, `normalised` (a disguise was read) or `joined` (several messages together)
    scores: dict[str, float] | None = None  # of every category that counted


class Guard:
    """Judges texts. It may be used from several threads."""

    def __init__(
        self,
        classifier: TextClassifier,
        policy: Policy,
        thresholds: dict[str, float],
        *,
        narrow_tokens: int = 0,
        default: float = 0.5,
    ) -> None:
        self.classifier, self.policy, self.thresholds = classifier, policy, thresholds
        self.narrow_tokens, self._default = narrow_tokens, default
        self._encoder = classifier.encoder
        vocabulary = self._encoder.tokenizer.get_vocab()
        self._words = Words(sorted(vocabulary, key=lambda word: vocabulary[word]))

    @property
    def labels(self) -> list[str]:
        """The codes that it has learned."""
        return [label for label in self.classifier.labels if label != SAFE]

    def judge(
        self,
        texts: Sequence[str],
        where: Where = "input",
        *,
        categories: Collection[str] | None = None,
        threshold: float | None = None,
    ) -> list[Verdict]:
        """A verdict on each text, on what it says and on what it says behind a disguise.

        Of the policy's categories for this place, or of `categories` among them (codes or names): what belongs to
        another category is not flagged. `threshold` stands in for the guard's own.

        Raises:
            ConfigError: a category that is none of the policy's, or that the guard never learned.
        """
        told = [(reading, number) for number, text in enumerate(texts) for reading in readings(text, self._words)]
        found = self._judged([reading for reading, _ in told], where, categories, threshold)
        best: list[Verdict | None] = [None] * len(texts)
        for verdict, (_, number) in zip(found, told, strict=True):
            before = best[number]
            if before is not None:
                verdict = replace(verdict, reading="normalised")
            if before is None or verdict.probability > before.probability:
                best[number] = verdict
        return [verdict for verdict in best if verdict is not None]

    def judge_together(
        self,
        texts: Sequence[str],
        where: Where = "input",
        *,
        categories: Collection[str] | None = None,
        threshold: float | None = None,
    ) -> Verdict | None:
        """The verdict on what several messages say together; None where there are fewer than two."""
        told = joined_readings(texts, self._words)
        if not told:
            return None
        found = self._judged(told, where, categories, threshold)
        return replace(max(found, key=lambda verdict: verdict.probability), reading="joined")

    def enabled(self, where: Where, categories: Collection[str] | None = None) -> list[str]:
        """The codes that count there."""
        codes = self.policy.at(where)
        if categories is None:
            return [label for label in self.labels if label in codes or label == UNSAFE]
        wanted = only(self.policy, categories)
        if missing := [code for code in wanted if code not in self.labels]:
            known = ", ".join(label for label in self.labels if label != UNSAFE) or "none, only safe and unsafe"
            raise ConfigError(f"this guard was trained without rows of {missing[0]}; it knows: {known}")
        return [code for code in wanted if code in codes]

    def _judged(
        self, texts: Sequence[str], where: Where, categories: Collection[str] | None, threshold: float | None
    ) -> list[Verdict]:
        labels = self.classifier.labels
        counted = [labels.index(code) for code in self.enabled(where, categories)]
        others = [place for place, label in enumerate(labels) if place not in counted and label != SAFE]
        limit = self.thresholds.get(where, self._default) if threshold is None else threshold
        verdicts = []
        for table in self._probabilities(texts):  # (windows, classes)
            mass = table[:, counted].sum(1)
            if counted and others:  # what is rather of a category that does not count is none of ours
                mass = mass.where(table[:, counted].amax(1) >= table[:, others].amax(1), mass.clamp(max=0.0))
            row, value = table[int(mass.argmax())], float(mass.max()) if counted else 0.0
            scores = {labels[place]: round(float(row[place]), 4) for place in counted}
            best = max(scores.values(), default=0.0)
            named = sorted((code for code in scores if scores[code] >= best / 2), key=lambda code: -scores[code])
            flagged = bool(counted) and value >= limit
            verdicts.append(Verdict(flagged, round(value, 6), limit, tuple(named), where, scores=scores))
        return verdicts

    def _probabilities(self, texts: Sequence[str]) -> list[Tensor]:
        windows = [self._windows(text) for text in texts]
        flat = [row for several in windows for row in several]
        found = self.classifier.of_vectors(self._encoder.embed_tokens(flat)) if flat else torch.empty(0)
        return list(found.split([len(several) for several in windows]))

    def _windows(self, text: str) -> list[list[int]]:
        ids = self._ids(text)
        room = min(_WINDOW, self._longest) - len(self._ends[0]) - len(self._ends[1])
        sizes = [room] + ([self.narrow_tokens] if 0 < self.narrow_tokens < min(room, len(ids)) else [])
        found = []
        for size in sizes:
            step = max(1, size - size // 4)
            starts = range(0, max(len(ids) - size // 4, 1), step)
            found += [[*self._ends[0], *ids[start : start + size], *self._ends[1]] for start in starts]
        return found

    def _ids(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [*encoding.ids]

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = type(self._encoder.tokenizer).from_str(self._encoder.tokenizer.to_str())
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        """The special tokens before and behind a text."""
        encoding = self._tokenizer.encode("a")
        marks = [place for place, special in enumerate(encoding.special_tokens_mask) if special]
        inner = [place for place in range(len(encoding.ids)) if place not in marks]
        first = inner[0] if inner else len(encoding.ids)
        return encoding.ids[:first], [encoding.ids[place] for place in marks if place > first]

    @property
    def _longest(self) -> int:
        config = self._encoder.model.config
        return config.max_position_embeddings - config.first_position


def save_guard(guard: Guard, encoder_place: Path | str, folder: Path, **about: Any) -> None:
    """Write a guard with its encoder and policy, so that the folder is all that is needed."""
    save_encoder(guard.classifier.encoder, encoder_place, folder / "encoder")
    save_head(guard.classifier, folder / "head")
    record = {"format": FORMAT, "policy": to_dict(guard.policy), "thresholds": guard.thresholds}
    record |= {"narrow_tokens": guard.narrow_tokens, **about}
    atomic_write(folder / FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def open_guard(folder: Path | str, *, device: str = "cpu", int8: bool = False) -> Guard:
    """The guard that `herd guard train` wrote; with `int8` its encoder's weights are rounded (a quarter of the memory).

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: guard of format {record['format']}, this Herd reads {FORMAT}; train it anew"
            )
        raw = record["policy"]
        categories = {code: Category(**one) for code, one in raw.pop("categories").items()}
        policy = Policy(categories=categories, **raw)
        limits = record["thresholds"]
        thresholds = {str(where): float(limits[where]) for where in PLACES if where in limits}
        narrow = int(record["narrow_tokens"])
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no guard lies there; `herd guard train` makes one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / FILE}: damaged ({error})") from None
    encoder: Encoder = open_encoder(folder / "encoder", device=device)
    head = load_head(folder / "head", encoder)  # which knows the weights as they were
    if int8:
        round_to_int8(encoder)
    return Guard(head, policy, thresholds, narrow_tokens=narrow)
