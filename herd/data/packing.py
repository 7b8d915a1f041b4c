"""Packing documents into rows of equal length with hardly any padding.

A document of n tokens has n - 1 places to learn from (every token but the first is predicted once). Long documents
are cut into whole rows; what is left over, and the short documents, share rows by best-fit-decreasing, so that no
document is cut that need not be.

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (best-fit packing).
"""

from bisect import bisect_left, insort
from collections import defaultdict
from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Parts of documents, each short enough for a row. Arrays of equal length."""

    document: np.ndarray  # which document
    start: np.ndarray  # first input token within the document
    length: np.ndarray  # input tokens; the labels are the same stretch one token later


class Rows(NamedTuple):
    """Which pieces share a row: row `r` holds `pieces[bounds[r]:bounds[r + 1]]`."""

    pieces: np.ndarray
    bounds: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.pieces[self.bounds[row] : self.bounds[row + 1]]

    def __len__(self) -> int:
        return len(self.bounds) - 1


def cut(document_tokens: np.ndarray, row_tokens: int) -> Pieces:
    """Split documents, given by their numbers of tokens, into pieces of at most `row_tokens` inputs."""
    places = np.maximum(np.asarray(document_tokens, dtype=np.int64) - 1, 0)
    num_pieces = -(-places // row_tokens)
    document = np.repeat(np.arange(len(places)), num_pieces)
    first = np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    start = (np.arange(len(document)) - first) * row_tokens
    return Pieces(document, start, np.minimum(places[document] - start, row_tokens))


def pack(lengths: np.ndarray, row_tokens: int) -> Rows:
    """Pack pieces into rows of at most `row_tokens` by best-fit decreasing.

    `lengths` are between 1 and `row_tokens`. The same lengths always give the same rows.
    """
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), dtype=np.int64)
    with_room: dict[int, list[int]] = defaultdict(list)  # free tokens -> rows
    room: list[int] = []  # the free sizes that some row has, ascending
    num_rows = 0
    for piece, length in zip(order.tolist(), lengths[order].tolist()):
        best = bisect_left(room, length)
        if best == len(room):
            row, free = num_rows, row_tokens
            num_rows += 1
        else:
            free = room[best]
            row = with_room[free].pop()
            if not with_room[free]:
                room.pop(best)
        row_of[piece] = row
        if free - length > 0:
            if not with_room[free - length]:
                insort(room, free - length)
            with_room[free - length].append(row)
    pieces = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[pieces], np.arange(num_rows + 1))
    return Rows(pieces, bounds)


def pack_bundles(lengths: np.ndarray, bundle: np.ndarray, row_tokens: int) -> Rows:
    """Like `pack`, with pieces of the same `bundle` number always in the same row."""
    numbers, member_of = np.unique(bundle, return_inverse=True)
    members = np.argsort(member_of, kind="stable")
    ends = np.cumsum(np.bincount(member_of, minlength=len(numbers)))
    starts = np.concatenate([[0], ends[:-1]])
    totals = np.bincount(member_of, weights=lengths, minlength=len(numbers)).astype(np.int64)
    rows = pack(totals, row_tokens)
    pieces = [members[starts[number] : ends[number]] for number in rows.pieces]
    sizes = (ends - starts)[rows.pieces]
    bounds = np.concatenate([[0], np.cumsum(sizes)])[rows.bounds]
    return Rows(np.concatenate(pieces) if pieces else members, bounds)
