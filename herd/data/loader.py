"""The micro-batches of any optimizer step, as a pure function of (seed, step, schedule of phases).

Nothing is consumed and nothing is remembered: which rows a step holds follows from how many rows all steps before it
held (a sum over phases), whose turn each row is (`mixture`), and a computed shuffle of each source's rows per epoch
(`permutation`). So a run resumes anywhere, on any number of processes, and sees each sample exactly as scheduled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from herd.data.mixture import turns
from herd.data.packing import Pieces, Rows, cut, pack, pack_bundles
from herd.data.permutation import permute
from herd.data.shards import Documents
from herd.errors import ConfigError, DataError
from herd.types import IGNORE, Batch


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The batch size, row length and mixture of the steps from `step` until the next phase."""

    step: int = 0
    batch_tokens: int  # of one optimizer step, over all processes
    row_tokens: int
    mixture: Mapping[str, float]  # source -> weight, any scale

    @property
    def num_rows(self) -> int:
        """Rows of one optimizer step."""
        return max(1, round(self.batch_tokens / self.row_tokens))


class Placed(NamedTuple):
    """The location of a part of a document in a micro-batch."""

    row: int
    offset: int
    documents: Documents
    document: int
    start: int  # first input token within the document
    length: int


Columns = Callable[[list[Placed], tuple[int, int]], dict[str, torch.Tensor]]
"""Makes an objective's additional columns from the locations of the documents in a micro-batch and its (B, T)."""


class PackedLoader:
    """Packed micro-batches of `micro_tokens` tokens at most, for each step of a schedule of phases.

    `sources` are sorted by name; a batch's column `source` (B,) holds the number of the source each row is from.
    `columns` makes an objective's further columns from where the documents of a micro-batch lie and its (B, T). Of
    `world` processes each sees every `world`-th row of a step, so that all together see what one alone would.

    Raises:
        ConfigError: a mixture names a source that is not there or gives no weight to any.
        DataError: a source without a single token to learn from.
    """

    def __init__(
        self,
        sources: Mapping[str, Documents],
        phases: Sequence[Phase],
        *,
        seed: int = 0,
        micro_tokens: int = 4096,
        rank: int = 0,
        world: int = 1,
        columns: Columns | None = None,
    ):
        self.sources = dict(sorted(sources.items()))
        self.names = tuple(self.sources)
        self.phases = sorted(phases, key=lambda phase: phase.step)
        self.seed, self.micro_tokens, self.rank, self.world, self.columns = seed, micro_tokens, rank, world, columns
        self._tables: dict[tuple[str, int], _Table] = {}
        self._check()

    @property
    def row_tokens(self) -> int:
        """Length of a row in the first phase."""
        return self.phases[0].row_tokens

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of an optimizer step, in order: as many as every other process has.

        Where it has no row of its own a batch is a row of padding, in which nothing is learned.
        """
        phase = self._phase(step)
        rows = self._rows(step)
        most = -(-len(rows) // self.world)
        num_batches = -(-most * phase.row_tokens // max(self.micro_tokens, phase.row_tokens))
        parts = np.array_split(np.array(rows[self.rank :: self.world], dtype=int).reshape(-1, 2), num_batches or 1)
        return [self._batch([tuple(row) for row in part.tolist()], phase.row_tokens) for part in parts if most]

    def epoch(self) -> Iterator[Batch]:
        """Every row of every source once, in stored order and the first phase's length, for evaluation.

        Of several processes each has its share, in as many batches as the others.
        """
        row_tokens = self.row_tokens
        rows = [(n, row) for n, name in enumerate(self.names) for row in range(len(self._table(name, row_tokens).rows))]
        per_batch = max(1, self.micro_tokens // row_tokens)
        mine = rows[self.rank :: self.world]
        for first in range(0, -(-len(rows) // self.world), per_batch):
            yield self._batch(mine[first : first + per_batch], row_tokens)

    def tokens_before(self, step: int) -> int:
        """The number of tokens (positions in rows) of all steps before this one, over all processes."""
        return sum(steps * phase.num_rows * phase.row_tokens for phase, steps in self._spans(step))

    def tokens_by_length(self, step: int) -> dict[int, int]:
        """The same, by row length."""
        found: dict[int, int] = {}
        for phase, steps in self._spans(step):
            found[phase.row_tokens] = found.get(phase.row_tokens, 0) + steps * phase.num_rows * phase.row_tokens
        return found

    def epochs(self, step: int) -> dict[str, float]:
        """Epochs over each source before this step."""
        row_tokens = self._phase(step).row_tokens
        cursors = self._cursors(step, row_tokens)
        return {name: cursors[name] / len(self._table(name, row_tokens).rows) for name in self.names if cursors[name]}

    def epoch_tokens(self) -> int:
        """The number of tokens (positions in rows of the first phase's length) of all sources."""
        return self.row_tokens * sum(len(self._table(name, self.row_tokens).rows) for name in self.names)

    # ---- which rows --------------------------------------------------------------------------------------------------

    def _rows(self, step: int) -> list[tuple[int, int]]:
        """The rows of a step as (source number, row of its table), ordered by source."""
        phase = self._phase(step)
        now, after = self._cursors(step, phase.row_tokens), self._cursors(step + 1, phase.row_tokens)
        rows = []
        for number, name in enumerate(self.names):
            count = after[name] - now[name]
            if count > 0:
                table = self._table(name, phase.row_tokens)
                rows += [(number, row) for row in table.shuffled(now[name], count).tolist()]
        return rows

    def _cursors(self, step: int, row_tokens: int) -> dict[str, int]:
        """How many rows of each source lie before a step, in rows of `row_tokens`.

        A change of length carries the cursor over in tokens, rounded up to a whole row of the new length.
        """
        rows, length = dict.fromkeys(self.names, 0), row_tokens
        for phase, steps in self._spans(step):
            rows, length = _rescaled(rows, length, phase.row_tokens), phase.row_tokens
            names = [name for name in self.names if phase.mixture.get(name, 0.0) > 0]
            counts = turns([phase.mixture[name] for name in names], steps * phase.num_rows)
            for name, count in zip(names, counts.tolist()):
                rows[name] += count
        return _rescaled(rows, length, row_tokens)

    def _phase(self, step: int) -> Phase:
        return [phase for phase in self.phases if phase.step <= step][-1]

    def _spans(self, step: int) -> list[tuple[Phase, int]]:
        """The phases begun before a step, each with its number of steps before that."""
        ends = [phase.step for phase in self.phases[1:]] + [step]
        spans = [(phase, min(end, step) - phase.step) for phase, end in zip(self.phases, ends)]
        return [(phase, steps) for phase, steps in spans if steps > 0]

    def _table(self, name: str, row_tokens: int) -> _Table:
        key = (name, row_tokens)
        if key not in self._tables:
            salt = self.names.index(name) + 1000 * row_tokens
            self._tables[key] = _Table(self.sources[name], row_tokens, self.seed * 1_000_003 + salt)
        return self._tables[key]

    # ---- what they hold ----------------------------------------------------------------------------------------------

    def _batch(self, rows: list[tuple[int, int]], row_tokens: int) -> Batch:
        shape = (max(len(rows), 1), row_tokens)
        tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels, document_ids = np.full(shape, IGNORE, np.int64), np.full(shape, -1, np.int32)
        placed = []
        for row, (number, table_row) in enumerate(rows):
            offset = 0
            for index, (documents, document, start, length) in enumerate(self._pieces(number, table_row, row_tokens)):
                here = slice(offset, offset + length)
                stretch = documents.tokens(document, start, length + 1).astype(np.int64)
                tokens[row, here] = stretch[:-1]
                trained = documents.is_trained(document, start + 1, length)
                labels[row, here] = stretch[1:] if trained is None else np.where(trained, stretch[1:], IGNORE)
                positions[row, here] = np.arange(length)
                document_ids[row, here] = index
                placed.append(Placed(row, offset, documents, document, start, length))
                offset += length
        columns = {"source": torch.tensor([number for number, _ in rows] or [0])}
        if self.columns is not None:
            columns |= self.columns(placed, shape)
        arrays = {"tokens": tokens, "labels": labels, "positions": positions, "document_ids": document_ids}
        return Batch(columns=columns, **{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _pieces(self, number: int, row: int, row_tokens: int) -> list[tuple[Documents, int, int, int]]:
        table = self._table(self.names[number], row_tokens)
        chosen = table.rows[row]
        columns = (table.pieces.document[chosen], table.pieces.start[chosen], table.pieces.length[chosen])
        return [(table.documents, *piece) for piece in zip(*(column.tolist() for column in columns))]

    def _check(self) -> None:
        if not self.phases or self.phases[0].step != 0:
            raise ConfigError("the schedule of batches must have a phase that begins at step 0")
        for phase in self.phases:
            if unknown := [name for name in phase.mixture if name not in self.sources]:
                raise ConfigError(
                    f"the mixture names the source `{unknown[0]}`; the packed sources are: {', '.join(self.names)}"
                )
            weights = phase.mixture.values()
            if min(weights, default=0.0) < 0 or not 0 < sum(weights) < math.inf:
                raise ConfigError(f"the mixture {dict(phase.mixture)} needs finite weights of 0 or more, not all 0")
            for name, weight in phase.mixture.items():
                if weight > 0 and not len(self._table(name, phase.row_tokens).rows):
                    raise DataError(f"source `{name}` has no document of two tokens or more to learn from")


def num_rows(sources: Mapping[str, Documents], row_tokens: int) -> dict[str, int]:
    """How many packed rows of this length each source makes."""
    return {name: len(_Table(documents, row_tokens, 0).rows) for name, documents in sources.items()}


def within_vocabulary(batches: Sequence[Batch], vocab_size: int, names: Sequence[str]) -> tuple[list[Batch], str]:
    """The batches as a model of so many tokens can read them, and what had to be changed, in words; else empty.

    A token id that the model has not is replaced by the last that it has, so that a process can go through the step
    with the others and all can be told. `names` are those of the sources, for the words.
    """
    readable, fault, last = [], "", vocab_size - 1
    for batch in batches:
        highest = torch.maximum(batch.tokens, batch.labels).amax(1)  # of each row
        if not fault and bool((highest > last).any()):
            row = int(highest.argmax())
            number = int(batch.columns["source"][row]) if "source" in batch.columns else 0
            source = f"source `{names[number]}`" if names else "a batch"
            fault = (
                f"{source} holds the token id {int(highest[row]):,}, and the model's vocabulary ends with "
                f"{last:,}: its shards are damaged or of another tokenizer; pack them again"
            )
        if fault:
            batch = replace(batch, tokens=batch.tokens.clamp(max=last), labels=batch.labels.clamp(max=last))
        readable.append(batch)
    return readable, fault


def _rescaled(rows: dict[str, int], old: int, new: int) -> dict[str, int]:
    return {name: -(-count * old // new) for name, count in rows.items()}


class _Table:
    """The rows of one source at one length, and their shuffled order in each epoch."""

    def __init__(self, documents: Documents, row_tokens: int, key: int):
        self.documents, self.row_tokens, self.key = documents, row_tokens, key

    @cached_property
    def pieces(self) -> Pieces:
        return cut(self.documents.num_tokens, self.row_tokens)

    @cached_property
    def rows(self) -> Rows:
        if self.documents.bundle is None:
            return pack(self.pieces.length, self.row_tokens)
        return pack_bundles(self.pieces.length, self.documents.bundle[self.pieces.document], self.row_tokens)

    def shuffled(self, first: int, count: int) -> np.ndarray:
        """The rows `first` to `first + count` of the infinite shuffled sequence of epochs."""
        epochs, within = np.divmod(np.arange(first, first + count), len(self.rows))
        rows = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            key = self.key * 1_000_003 + int(epoch)
            rows[epochs == epoch] = permute(within[epochs == epoch], len(self.rows), key)
        return rows
