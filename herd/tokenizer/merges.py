"""The merge loop of byte-level BPE training, over counted words.

All words are concatenated in flat arrays, one place for each byte. A token is stored at its first place (`starts`) and
at its last (`ends`), so that both neighbours of a token are found without a search:

    place    0    1    2    3    4    5
    byte     l    o    w    |    l    o       | separates words
    starts   lo   -    w    |    lo   -
    ends     -    lo   w    |    -    lo

A pair's count never grows after its creation. So a heap of pairs with their initial counts gives upper bounds: the top
pair is counted again, at the places where it was, and merged if its count is unchanged.

Frequent pairs have many places and are processed with NumPy. Most merges of a large vocabulary concern pairs in only a
few distinct words; for those a plain loop costs a tenth of NumPy's calls.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import numpy as np

from herd.errors import CapacityError

_NONE = -1  # no token starts (or ends) at this place
_FEW = 32  # places up to which a plain loop is faster
_ROUND_SPAN = 16  # a round keeps pairs at least 1/16 as frequent as the best one; rarer ones are for later rounds


Places = Sequence[int] | np.ndarray
Pair = tuple[int, tuple[int, int], Places]
"""A pair of adjacent tokens in the heap: its negative count, so that the most frequent comes first, and among equals
the one with smaller ids; the ids; the places where its left token starts, ascending."""


def learn_merges(
    words: Sequence[Sequence[int]],
    counts: Sequence[int],
    lengths: Sequence[int],
    num_merges: int,
) -> Iterator[tuple[int, int]]:
    """The next merges of BPE: each time the most frequent pair, among equals the one with smaller ids.

    `words` are sequences of token ids, `counts` their frequencies, `lengths` the number of bytes of each id. Merge
    number i makes token `len(lengths) + i`. It ends after `num_merges`, or earlier if no pair is left.

    Source: Sennrich et al. 2016, algorithm 1.
    """
    text = _Text(words, counts, [*lengths, *[0] * num_merges])
    new, end = len(lengths), len(lengths) + num_merges
    while new < end and (heap := text.frequent_pairs()):
        heapq.heapify(heap)
        while heap and new < end:
            negative_count, ids, places = heapq.heappop(heap)
            places, count = text.find(ids, places)
            if count == -negative_count:
                for born in text.merge(ids, places, new):
                    heapq.heappush(heap, born)
                yield ids
                new += 1
            elif count >= text.least:
                heapq.heappush(heap, (-count, ids, places))


class _Text:
    """The words after the merges so far."""

    def __init__(self, words: Sequence[Sequence[int]], counts: Sequence[int], lengths: Sequence[int]) -> None:
        self.least = 1
        in_bytes = [word for word in words if isinstance(word, bytes)]
        tokens: np.ndarray
        if len(in_bytes) == len(words):
            tokens = np.frombuffer(b"".join(in_bytes), dtype=np.uint8)
        else:
            tokens = np.fromiter(chain.from_iterable(words), dtype=np.int32)
        num_places = int(np.array(lengths)[tokens].sum()) + len(words) + 1
        place: type[np.integer] = np.int32 if num_places < 2**31 else np.int64
        self.lengths = np.array(lengths, dtype=place)
        self.starts = np.full(num_places, _NONE, dtype=np.int32)
        self.ends = self.starts.copy()
        counted = np.array(counts, dtype=np.int64)
        weight: type[np.integer] = (
            np.int32 if counted.max(initial=0) < 2**31 else np.int64
        )  # sums are of 64 bits in either case
        self.weights = np.zeros(num_places, dtype=weight)  # of the word, at each place where a token starts
        num_tokens = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        last: np.ndarray = np.cumsum(self.lengths[tokens], dtype=place)
        last += np.repeat(np.arange(len(words), dtype=place), num_tokens)  # a wall before each word
        self.ends[last] = tokens
        last -= self.lengths[tokens] - 1
        self.starts[last] = tokens
        self.weights[last] = np.repeat(counted.astype(weight), num_tokens)
        self.sizes = list(lengths)  # the same as `lengths`, for plain loops
        self._starts, self._ends, self._weights = (array.data for array in (self.starts, self.ends, self.weights))
        self._id_bits, self._place_bits = len(lengths).bit_length(), num_places.bit_length()
        if 2 * self._id_bits + self._place_bits > 63:
            raise CapacityError(
                f"{len(words):,} distinct pre-tokens are too many for {len(lengths):,} tokens; lower max_pretokens"
            )

    def frequent_pairs(self) -> list[Pair]:
        """Start a round: the pairs at least a sixteenth as frequent as the best one."""
        places = np.flatnonzero(self.starts[:-1] != _NONE).astype(self.lengths.dtype)
        right = self.starts[places + self.lengths[self.starts[places]]]
        places, right = places[right != _NONE], right[right != _NONE]
        if not len(places):
            return []
        keys = self.starts[places].astype(np.int64)
        keys <<= self._id_bits
        keys |= right
        keys <<= self._place_bits
        keys |= places
        del right, places
        groups = self._groups(keys, new_round=True)
        del keys
        return [(-count, divmod(key, 1 << self._id_bits), where) for key, count, where in groups]

    def _groups(self, packed: np.ndarray, new_round: bool = False) -> Iterator[tuple[int, int, np.ndarray]]:
        """Group equal keys: each key with the total weight of its places and the places, unless it is too rare.

        Key and place share one integer (the place is in the lower bits), so that one in-place sort suffices.
        """
        packed.sort()
        places = np.empty(len(packed), dtype=self.lengths.dtype)
        np.bitwise_and(packed, (1 << self._place_bits) - 1, out=places, casting="unsafe")
        packed >>= self._place_bits
        begins = np.concatenate([[0], np.flatnonzero(packed[1:] != packed[:-1]) + 1])
        totals = np.add.reduceat(self.weights[places], begins, dtype=np.int64)
        ends = np.concatenate([begins[1:], [len(packed)]])
        if new_round:
            self.least = max(int(totals.max()) // _ROUND_SPAN, 1)
        wanted = totals >= self.least
        bounds = (array[wanted].tolist() for array in (packed[begins], totals, begins, ends))
        for key, total, begin, end in zip(*bounds, strict=True):
            yield key, total, places[begin:end]

    def find(self, ids: tuple[int, int], places: Places) -> tuple[Places, int]:
        """The places where a pair still exists, of those where it was created, and its count there."""
        left, right = ids
        size = self.sizes[left]
        if len(places) <= _FEW:
            starts, weights = self._starts, self._weights
            standing = [place for place in places if starts[place] == left and starts[place + size] == right]
            return standing, sum([weights[place] for place in standing])
        places = np.asarray(places)
        here = self.starts[places] == left
        here &= self.starts[places + size] == right
        places = places if here.all() else places[here]
        return places, int(self.weights[places].sum(dtype=np.int64))

    def merge(self, ids: tuple[int, int], places: Places, new: int) -> list[Pair]:
        """Merge a pair at all its places; returns the new pairs with the new token."""
        left, right = ids
        size = self.sizes[left]
        self.lengths[new] = self.sizes[new] = width = size + self.sizes[right]
        if len(places) <= _FEW:
            return self._merge_few(left, right, places, new)
        places = np.asarray(places)
        if left == right:
            places = _every_other(places, size)
        self.starts[places] = new
        self.starts[places + size] = _NONE
        self.ends[places + width - 1] = new
        born = self._born(self.ends[places - 1], places, new, before=True)
        return [*born, *self._born(self.starts[places + width], places, new, before=False)]

    def _merge_few(self, left: int, right: int, places: Places, new: int) -> list[Pair]:
        starts, ends, weights, sizes = self._starts, self._ends, self._weights, self.sizes
        size, width = sizes[left], sizes[new]
        if left == right:
            places = _every_other(np.array(places), size).tolist()
        for place in places:
            starts[place], starts[place + size], ends[place + width - 1] = new, _NONE, new
        before: dict[int, list[int]] = {}
        after: dict[int, list[int]] = {}
        for place in places:
            if (neighbour := ends[place - 1]) != _NONE:
                before.setdefault(neighbour, []).append(place - sizes[neighbour])
            if (neighbour := starts[place + width]) != _NONE and neighbour != new:
                after.setdefault(neighbour, []).append(place)
        born = [((neighbour, new), where) for neighbour, where in before.items()]
        born += [((new, neighbour), where) for neighbour, where in after.items()]
        counted = ((sum([weights[place] for place in where]), ids, where) for ids, where in born)
        return [(-count, ids, array("q", where)) for count, ids, where in counted if count >= self.least]

    def _born(self, neighbours: np.ndarray, places: np.ndarray, new: int, before: bool) -> Iterator[Pair]:
        """The pairs of a new token with its neighbours on one side; two adjacent new tokens count only on the left."""
        wanted = neighbours != _NONE if before else (neighbours != _NONE) & (neighbours != new)
        neighbours, places = neighbours[wanted], places[wanted]
        if not len(places):
            return
        packed = neighbours.astype(np.int64)
        packed <<= self._place_bits
        packed |= places
        for neighbour, count, where in self._groups(packed):
            if before:
                yield -count, (neighbour, new), where - self.sizes[neighbour]
            else:
                yield -count, (new, neighbour), where


def _every_other(places: np.ndarray, size: int) -> np.ndarray:
    """Every second place in runs of equal tokens, from the left: [0, 1, 2, 7, 8], 1 -> [0, 2, 7]."""
    in_row = np.diff(places, prepend=places[:1] - size - 1) == size
    index = np.arange(len(places))
    row_start = np.maximum.accumulate(np.where(in_row, 0, index))
    return places[(index - row_start) % 2 == 0]


def reference_merges(
    words: Sequence[Sequence[int]], counts: Sequence[int], first_id: int, num_merges: int
) -> list[tuple[int, int]]:
    """The reference for `learn_merges`: count all pairs, merge the best, repeat."""
    words = [list(word) for word in words]
    merges: list[tuple[int, int]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in zip(words, counts, strict=True):
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = [merge_pair(word, best, first_id + len(merges)) for word in words]
        merges.append(best)
    return merges


def merge_pair(word: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with each occurrence of the pair replaced, from the left: [1, 2, 3, 1, 2], (1, 2), 4 -> [4, 3, 4]."""
    merged: list[int] = []
    i = 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged
