"""Preference pairs as packed documents, with the columns that reward models and DPO need.

Each response is a document of its own (prompt, then response), and the two or three of a pair share a row: so a pair
never straddles micro-batches, and no response sees another.

Choice: the paper concatenates the prompt and its responses in one row as an approximation and leaves open how they see
each other; separate documents are the exact loss at the price of the prompt being computed once per response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.data.choices import RANKS, Choice, choices_of
from herd.data.conversations import count_unwritten, switched
from herd.data.loader import Placed
from herd.data.rows import RowSettings, read_rows
from herd.data.shards import Documents, in_memory
from herd.data.split import is_held_out
from herd.data.talks import Notes, Talk
from herd.errors import DataError
from herd.tokenizer.chat import formatting_mask, render
from herd.tokenizer.tokenizer import Tokenizer

STRENGTHS = ("marginally_better", "slightly_better", "better", "significantly_better")
"""Annotators' four grades of preference; a row without one counts as `better`."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Preference pairs: one document per response, pair by pair, best first. Arrays have one entry per document."""

    documents: Documents
    rank: np.ndarray  # index into RANKS
    formatting: np.ndarray  # one entry per stored token: a header, terminator or other form
    reference: np.ndarray  # the reference model's summed log-probability of the response, NaN where unknown
    group: np.ndarray  # the row's `name`, `group` or prompt: what a held-out split must not tear apart
    kind: np.ndarray  # the row's `kind`, for figures of each

    def __len__(self) -> int:
        return len(np.unique(self._bundle))

    @property
    def _bundle(self) -> np.ndarray:
        """Each document's pair number."""
        assert self.documents.bundle is not None
        return self.documents.bundle

    def is_extreme(self) -> np.ndarray:
        """Whether each document is the best or the worst of its pair: the two that DPO compares."""
        bundle = self._bundle
        edge = bundle[1:] != bundle[:-1]
        extreme: np.ndarray = np.concatenate([[True], edge]) | np.concatenate([edge, [True]])
        return extreme

    def with_reference(self, reference: np.ndarray) -> Pairs:
        """The same with the reference model's log-probabilities, one per document."""
        return replace(self, reference=np.asarray(reference, dtype=np.float64))

    def select(self, keep: np.ndarray) -> Pairs:
        """Only the documents where `keep` is true; it must keep whole pairs."""
        names = ("rank", "reference", "group", "kind")
        return replace(
            self, documents=self.documents.select(keep), **{name: getattr(self, name)[keep] for name in names}
        )

    def with_terminators(self) -> Pairs:
        """The same with the responses' stop tokens counted, as in TRL, not masked as formatting."""
        return replace(self, formatting=np.zeros_like(self.formatting))

    def split(self, share: float, salt: str = "pairs") -> tuple[Pairs, Pairs]:
        """Pairs to train on, and about this share (0 to 1) of the groups held out; another `salt` holds out others.

        Another hash than that of `herd pack`: what it held out never became a pair to train on.
        """
        held_out = np.array([is_held_out(f"{salt} of {group}", share) for group in self.group])
        return self.select(~held_out), self.select(held_out)

    def reward_columns(self, placed: list[Placed], shape: tuple[int, int]) -> dict[str, Tensor]:
        """The columns of `reward_pairs` by comparison: `better`, `worse` (M, 2), row and position of a response's end.

        `document` (M,) is the better response's number.
        """
        better, worse, document = [], [], []
        for responses in self._by_pair(placed):
            ends = [(response.row, response.offset + response.length - 1) for response in responses]
            for first in range(len(ends)):
                for second in range(first + 1, len(ends)):
                    better.append(ends[first])
                    worse.append(ends[second])
                    document.append(responses[first].document)
        places = {"better": better, "worse": worse}  # the type is said for those of no pair too
        columns = {name: torch.tensor(place, dtype=torch.int64).view(-1, 2) for name, place in places.items()}
        return columns | {"document": torch.tensor(document, dtype=torch.int64)}

    def dpo_columns(self, placed: list[Placed], shape: tuple[int, int]) -> dict[str, Tensor]:
        """The columns of `dpo` for best and worst: `response`, `counted` (B, T), `reference`, `document` (2P,)."""
        response, counted = np.full(shape, -1, np.int64), np.zeros(shape, bool)
        numbers: list[int] = []
        for responses in self._by_pair(placed):
            for item in (responses[0], responses[-1]):
                here = item.row, slice(item.offset, item.offset + item.length)
                trained = self.documents.is_trained(item.document, item.start + 1, item.length)
                assert trained is not None  # a pair has its prompt masked
                begin = self.documents.start[item.document] + item.start + 1
                response[here] = np.where(trained, len(numbers), -1)
                counted[here] = trained & ~self.formatting[begin : begin + item.length]
                numbers.append(item.document)
        return {
            "response": torch.from_numpy(response),
            "counted": torch.from_numpy(counted),
            "reference": torch.from_numpy(self.reference[numbers]).float(),
            "document": torch.tensor(numbers, dtype=torch.int64),
        }

    def _by_pair(self, placed: list[Placed]) -> list[list[Placed]]:
        bundle = self._bundle
        return [list(group) for _, group in groupby(placed, key=lambda item: bundle[item.document])]


def load_pairs(
    paths: Path | Sequence[Path],
    tokenizer: Tokenizer,
    row_tokens: int,
    *,
    min_strength: str = STRENGTHS[0],
    options: RowSettings | None = None,
    context: int | None = None,
) -> Pairs:
    """The pairs of JSONL or Parquet files: `prompt`, `chosen`, `rejected`, perhaps `edited` (better than chosen).

    Other published forms are read too (`herd.data.choices`). A prompt is a list of messages or a text; a response is a
    text, or the messages that follow the prompt or hold it. Pairs of less than `min_strength`, with equal responses or
    different prompts, those of nearly equal scores of their own (`rows.min_gap`), and those that together do not fit
    into a row (or one of them into `context` tokens), are left out and counted, or as `options` says.

    Raises:
        DataError: a row is no pair, or too long and that is refused, or no pair is left.
    """
    responses: list[_Response] = []
    too_weak = num_pairs = 0
    notes, options = Notes(), options or RowSettings()
    for place, row in read_rows(paths, options):
        try:
            weak = _strength(row) < STRENGTHS.index(min_strength)
            pairs = [
                _fitted(
                    _responses(row, choice, tokenizer, notes),
                    row_tokens,
                    context or row_tokens,
                    options.too_long,
                    notes,
                )
                for choice in choices_of(row, notes)
                if not _is_tie(choice, options.min_gap, notes)
            ]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        for pair in pairs:
            if weak:
                too_weak += 1
                continue
            responses += [replace(response, bundle=num_pairs) for response in pair]
            num_pairs += bool(pair)
    if too_weak:
        notes.left_out["pairs of similar responses"] += too_weak
    notes.tell()
    if not responses:
        raise DataError(
            f"no pair to train on: {too_weak} are less than {min_strength}"
            + "".join(f", {count} {what}" for what, count in notes.left_out.items())
            + "; pairs that are too long need a larger batch.row_tokens, or rows.too_long=cut"
        )
    return Pairs(
        documents=in_memory(
            "pairs",
            [response.tokens for response in responses],
            trained=[response.trained for response in responses],
            bundle=[response.bundle for response in responses],
            tokenizer=tokenizer.fingerprint,
        ),
        rank=np.array([response.rank for response in responses]),
        formatting=np.concatenate([response.formatting for response in responses]),
        reference=np.array([response.reference for response in responses]),
        group=np.array([response.group for response in responses]),
        kind=np.array([response.kind for response in responses]),
    )


@dataclass(frozen=True)
class _Response:
    tokens: list[int]  # one pad token at the end, so that the terminator is an input, whose score can be read
    trained: np.ndarray
    formatting: np.ndarray
    rank: int
    reference: float
    group: str
    kind: str
    bundle: int = -1

    def cut(self, most: int) -> _Response:
        """Its beginning, with `most` input tokens."""
        parts = {name: getattr(self, name)[: most + 1] for name in ("tokens", "trained", "formatting")}
        return replace(self, reference=float("nan"), **parts)  # what is known is of the whole response


def _fitted(pair: list[_Response], row_tokens: int, context: int, too_long: str, notes: Notes) -> list[_Response]:
    """The pair if it fits; else None, or its responses truncated, according to `too_long`."""
    lengths = [len(response.tokens) - 1 for response in pair]
    if sum(lengths) <= row_tokens and max(lengths) <= context:
        return pair
    if too_long == "refuse":
        raise DataError(f"the pair has {sum(lengths):,} tokens, and a row takes {row_tokens:,} (rows.too_long=refuse)")
    most = min(row_tokens // len(pair), context)
    cut = [response.cut(most) for response in pair]
    same = len({tuple(response.tokens) for response in cut}) < len(cut)
    if too_long == "leave_out" or same or not all(response.trained.any() for response in cut):
        notes.left_out[f"pairs longer than a row of {row_tokens:,} tokens"] += 1
        return []
    notes.changed[f"pairs cut to {most:,} tokens a response"] += 1
    return cut


def _responses(row: dict[str, Any], choice: Choice, tokenizer: Tokenizer, notes: Notes) -> list[_Response]:
    made = []
    spoken = [*choice.prompt, *(message for response in choice.responses.values() for message in response)]
    count_unwritten(tokenizer, Talk(spoken, [], choice.tools), notes)
    before = sum(message["role"] == "assistant" for message in choice.prompt)
    for name, response in choice.responses.items():
        rendered = render(tokenizer, [*choice.prompt, *response], tools=choice.tools)
        answers = sum(message["role"] == "assistant" for message in response)
        trained = switched(rendered.mask, [False] * before + [True] * answers)
        known = row.get(f"ref_{name}")
        made.append(
            _Response(
                tokens=[*rendered.tokens, tokenizer.pad_id],
                trained=np.array([*trained, False]),
                formatting=np.array([*formatting_mask(tokenizer, rendered.tokens), True]),
                rank=RANKS.index(name),
                reference=float("nan") if known is None else float(known),
                group=str(row.get("name") or row.get("group") or choice.group or choice.prompt[-1].get("content")),
                kind=str(row.get("kind") or ""),
            )
        )
    return made


def _is_tie(choice: Choice, min_gap: float, notes: Notes) -> bool:
    """Whether a pair's own scores do not prefer the chosen response by enough, which is counted."""
    if choice.gap is None or (choice.gap > 0 and choice.gap >= min_gap):
        return False
    reversed_, what = choice.gap < 0, "pairs whose scores are equal or nearly so"
    notes.left_out["pairs whose rejected response has the higher score" if reversed_ else what] += 1
    return True


def _strength(row: dict[str, Any]) -> int:
    name = row.get("strength") or "better"
    if name not in STRENGTHS:
        raise DataError(f"unknown strength {name!r}; expected one of {', '.join(STRENGTHS)}")
    return STRENGTHS.index(name)
