"""An index on disk of the n-grams of a packed corpus, with their counts.

Each n-gram of token ids is a 64-bit number (Karp and Rabin 1987); that any two of 10^9 n-grams share one has a
probability of about 3 %. `numbers.u64` holds those of the corpus once each, in order, `counts.u32` how often each
occurs. They are read from disk as they are needed, so an index may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from herd.data.shards import Documents
from herd.errors import DataError
from herd.run import atomic_write

FORMAT = 1
"""Version of `index.json`."""

_BASE = 0x9E3779B97F4A7C15
_BUCKETS = 64  # by the first bits of the numbers; each is sorted in memory by itself
_BUFFERED = 1 << 22  # numbers held before they are written to their buckets

Numbers = NDArray[np.uint64]


def ngram_numbers(tokens: NDArray[np.uint32] | Iterable[int], n: int) -> Numbers:
    """A hash of each n consecutive tokens, (tokens - n + 1,); empty if there are fewer."""
    array = np.asarray(tokens, dtype=np.uint64)
    count = len(array) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    numbers = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        numbers *= np.uint64(_BASE)
        numbers += array[place : place + count] + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # Stafford's mix, as splitmix64 has it
        numbers ^= numbers >> np.uint64(shift)
        numbers *= np.uint64(factor)
    return np.asarray(numbers ^ (numbers >> np.uint64(31)), dtype=np.uint64)


def build_index(sources: Iterable[Documents], folder: Path, n: int, tokenizer: str) -> dict[str, int | str]:
    """Write the index of documents to a folder; no n-gram spans two of them. Returns the content of `index.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    num_tokens = num_documents = 0
    files = [(folder / f"bucket-{place:02d}").open("wb") for place in range(_BUCKETS)]
    try:
        held: list[Numbers] = []
        for documents in sources:
            for document in range(len(documents)):
                tokens = documents.tokens(document)
                num_tokens, num_documents = num_tokens + len(tokens), num_documents + 1
                held.append(ngram_numbers(tokens, n))
                if sum(map(len, held[-64:])) > _BUFFERED or len(held) == 4096:
                    _spill(held, files)
                    held = []
        _spill(held, files)
    finally:
        for file in files:
            file.close()
    distinct = 0
    with (folder / "numbers.u64").open("wb") as numbers, (folder / "counts.u32").open("wb") as counts:
        for place in range(_BUCKETS):
            bucket = folder / f"bucket-{place:02d}"
            found, often = np.unique(np.fromfile(bucket, dtype=np.uint64), return_counts=True)
            found.tofile(numbers)
            np.minimum(often, 2**32 - 1).astype(np.uint32).tofile(counts)
            distinct += len(found)
            bucket.unlink()
    told: dict[str, int | str] = {"format": FORMAT, "n": n, "tokenizer": tokenizer, "num_tokens": num_tokens}
    told |= {"num_documents": num_documents, "num_distinct": distinct}
    atomic_write(folder / "index.json", json.dumps(told))
    return told


def _spill(held: list[Numbers], files: list) -> None:  # type: ignore[type-arg]  # binary files
    if not held:
        return
    numbers = np.concatenate(held)
    bucket = (numbers >> np.uint64(58)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=_BUCKETS))
    for file, part in zip(files, np.split(numbers[order], ends[:-1]), strict=True):
        part.tofile(file)


class NgramIndex:
    """An index that `herd ngrams` wrote.

    Raises:
        DataError: there is none, or it is damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        try:
            told = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            assert told["format"] == FORMAT, f"format {told['format']}, expected {FORMAT}"
            self.n, self.tokenizer = int(told["n"]), str(told["tokenizer"])
            self.num_tokens, self.num_distinct = int(told["num_tokens"]), int(told["num_distinct"])
            for name, width in (("numbers.u64", 8), ("counts.u32", 4)):
                size = (folder / name).stat().st_size
                assert size == width * self.num_distinct, f"{name} has {size} bytes for {self.num_distinct} entries"
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise DataError(f"{folder}: no index of n-grams; make one with `herd ngrams` ({error})") from None
        empty = self.num_distinct == 0
        self._numbers = np.empty(0, np.uint64) if empty else np.memmap(folder / "numbers.u64", np.uint64, "r")
        self._counts = np.empty(0, np.uint32) if empty else np.memmap(folder / "counts.u32", np.uint32, "r")

    def counts(self, tokens: NDArray[np.uint32] | Iterable[int]) -> NDArray[np.int64]:
        """How often each n-gram of a text occurs in the corpus, (tokens - n + 1,)."""
        asked = ngram_numbers(tokens, self.n)
        if not len(asked) or not self.num_distinct:
            return np.zeros(len(asked), dtype=np.int64)
        place = np.minimum(np.searchsorted(self._numbers, asked), self.num_distinct - 1)
        return np.where(self._numbers[place] == asked, self._counts[place], 0).astype(np.int64)

    def overlap(self, tokens: list[int]) -> float:
        """The share of a text's tokens covered by n-grams of the corpus, 0 to 1.

        Source: Llama 3, section 5.1.4 (8-grams of tokens).
        """
        found = np.flatnonzero(self.counts(tokens))
        covered = np.zeros(len(tokens) + 1, dtype=np.int64)
        np.add.at(covered, found, 1)
        np.add.at(covered, found + self.n, -1)
        return float((np.cumsum(covered)[:-1] > 0).mean()) if tokens else 0.0


def whole(sources: dict[str, Documents]) -> Iterator[Documents]:
    """All sources, in their names' order."""
    yield from (sources[name] for name in sorted(sources))
