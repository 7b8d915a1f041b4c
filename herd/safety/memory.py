"""What a model keeps of its training texts, where an answer's words stand in them, and who holds a document.

The corpus is a run folder of `herd pack`, by whose shards and documents everything is found again; `herd ngrams` makes
the index of its n-grams.

Source: Llama 3, section 5.4.2 and Table 24 (verbatim memorization).
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from herd.curate.read.documents import as_list, parquet_files
from herd.data.ngrams import NgramIndex, ngram_numbers
from herd.data.shards import Documents, open_shards
from herd.data.split import is_held_out
from herd.errors import CheckpointError, DataError
from herd.evals.statistics import wilson
from herd.parquet import whole_rows
from herd.run import read_manifest

_COLUMNS = ("id", "url", "title", "source", "group", "text", "drop")
Complete = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts as token ids, how many tokens) -> what the model is surest of after each."""


@dataclass(frozen=True)
class Held:
    """A document where it was packed."""

    side: str  # train or heldout
    source: str
    shard: str  # file
    number: int  # of the document in the shard
    row: dict[str, Any]  # id, url, title


@dataclass(frozen=True)
class Match:
    """A stretch of a text's tokens that stands in a document."""

    start: int
    end: int
    shard: str
    number: int


class Corpus:
    """The documents that a run of `herd pack` cut into shards.

    Raises:
        DataError: no such run, or the documents that it packed are not there (say where: `documents`).
    """

    def __init__(self, pack: Path, documents: Sequence[Path] = ()) -> None:
        self.pack = pack
        try:
            self.holdout = json.loads((pack / "index.json").read_text(encoding="utf-8"))["holdout"]
            packed = json.loads((pack / "inputs.json").read_text(encoding="utf-8"))["documents"]["path"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{pack}: no run folder of `herd pack` ({error})") from None
        self.documents = [Path(folder) for folder in (documents or as_list(packed))]

    @cached_property
    def sources(self) -> dict[str, Documents]:
        """The training documents by source."""
        return open_shards(self.pack / "train")

    @cached_property
    def files(self) -> list[Path]:
        """The Parquet files that were packed, in the order of the shards' numbers."""
        if gone := [folder for folder in self.documents if not folder.exists()]:
            raise DataError(f"{gone[0]}: the documents that were packed are not there; say where: documents=FOLDER")
        return [file for folder in self.documents for file in parquet_files(folder)]

    def rows(self) -> Iterator[Held]:
        """Every packed document, by the rules and in the order that `herd pack` has."""
        for place, file in enumerate(self.files):
            present = set(pq.ParquetFile(file).schema_arrow.names)
            counts: Counter[tuple[str, str]] = Counter()
            for row in whole_rows(file, Counter(), [name for name in _COLUMNS if name in present]):
                if row["drop"] is not None or not row["text"]:
                    continue
                side = "heldout" if is_held_out(row["group"] or "", self.holdout) else "train"
                source = row["source"] or "documents"
                told = {name: row.get(name) for name in ("id", "url", "title")}
                shard = f"{side}/{source}-{place:05d}.npy"
                yield Held(side, source, shard, counts[side, source], told)
                counts[side, source] += 1

    def shards(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Of each training shard its name, tokens, and where its documents end."""
        for file in sorted((self.pack / "train").glob("*-*.npy")):
            manifest = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            yield f"train/{file.name}", np.load(file, mmap_mode="r"), np.asarray(manifest["document_ends"])


def matches(tokens: Sequence[int], corpus: Corpus, n: int = 8) -> list[Match]:
    """The stretches of n tokens and more that stand in training documents, from left to right, the longest of each.

    Stretches do not overlap; of several documents that hold one as long, the first.
    """
    asked = np.asarray(tokens, dtype=np.uint32)
    wanted = ngram_numbers(asked, n)
    if not len(wanted):
        return []
    places: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(wanted.tolist()):
        places[number].append(place)
    best: dict[int, Match] = {}
    for name, stored, ends in corpus.shards():
        numbers = ngram_numbers(stored, n)
        for hit in np.flatnonzero(np.isin(numbers, wanted)).tolist():
            document = int(np.searchsorted(ends, hit, side="right"))
            if hit + n > ends[document]:
                continue  # it would span two documents
            for place in places[int(numbers[hit])]:
                length = _common(asked[place:], stored[hit : int(ends[document])])
                if length >= n and length > (best[place].end - place if place in best else 0):
                    best[place] = Match(place, place + length, name, document)
    found, place = list[Match](), 0
    while place < len(asked):
        if place in best:
            found.append(best[place])
            place = best[place].end
        else:
            place += 1
    return found


def _common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length


def verbatim(complete: Complete, corpus: Corpus, index: NgramIndex, *, count: int, seed: int = 0) -> dict[str, Any]:
    """How often a model goes on with the very n tokens that follow n tokens of its training texts; n is the index's.

    `verbatim` counts what follows there, `included` any n-gram of the corpus, both with Wilson's intervals;
    `verbatim_by_prevalence` weighs each passage by how often it stands in the corpus.

    Raises:
        DataError: no training document is long enough.
    """
    n = index.n
    pool = [(source, place) for source in sorted(corpus.sources) for place in
            np.flatnonzero(corpus.sources[source].num_tokens >= 2 * n).tolist()]  # fmt: skip
    if not pool:
        raise DataError(f"{corpus.pack}: no training document has {2 * n} tokens, which passages of {n} need")
    draw = np.random.default_rng(seed)
    lengths = np.array([corpus.sources[source].num_tokens[place] - 2 * n + 1 for source, place in pool], float)
    prompts, truths = list[list[int]](), list[list[int]]()
    for chosen in draw.choice(len(pool), count, p=lengths / lengths.sum()):
        source, place = pool[chosen]
        start = int(draw.integers(0, int(lengths[chosen])))
        stretch = corpus.sources[source].tokens(place, start, 2 * n).tolist()
        prompts.append(stretch[:n])
        truths.append(stretch[n:])
    answers = complete(prompts, n)
    same = [float(list(answer) == truth) for answer, truth in zip(answers, truths, strict=True)]
    included = [float(len(answer) >= n and index.counts(answer[:n]).any()) for answer in answers]
    weights = np.array([int(index.counts(truth).max(initial=1)) for truth in truths], float)
    figures: dict[str, Any] = {"n": n, "passages": count}
    for name, hits in (("verbatim", same), ("included", included)):
        rate = wilson(hits)
        figures |= {name: round(rate.value, 5), f"{name}_low": round(rate.low, 5), f"{name}_high": round(rate.high, 5)}
    figures["verbatim_by_prevalence"] = round(float(np.average(same, weights=weights)), 5)
    return figures


def exposure(loss_of: Callable[[list[str]], Sequence[float]], secret: str, others: Sequence[str]) -> float:
    """How much surer a model is of a planted secret than of others of its kind, in bits: log2 of how many there are
    over its rank. 0 is chance; at log2 of all it is the surest.

    `loss_of` gives each text's loss; `secret` and `others` stand in the same words.

    Source: Carlini et al. 2019, "The Secret Sharer".
    """
    losses = list(loss_of([secret, *others]))
    rank = 1 + sum(loss <= losses[0] for loss in losses[1:])
    return math.log2(len(losses)) - math.log2(rank)


# ---- who holds a document --------------------------------------------------------------------------------------------


def tainted(root: Path, corpus: Corpus) -> list[tuple[Path, str]]:
    """The run folders under `root` that learned from the corpus, or from what came of it, with their stages.

    By the paths that each run folder wrote down as its inputs, which are compared by their ends: a run that was moved
    away and given another name is not found.
    """
    runs = {}
    for file in sorted(root.rglob("run.json")):
        try:
            runs[file.parent.resolve()] = (str(read_manifest(file.parent)["stage"]), _paths(file.parent))
        except (CheckpointError, DataError):
            continue
    begun = {folder.resolve() for folder in (corpus.pack, *corpus.documents)}
    found: dict[Path, str] = {}
    before = -1
    while len(begun) != before:
        before = len(begun)
        for folder, (stage, paths) in runs.items():
            if folder not in begun and any(_lies_in(path, known) for path in paths for known in begun):
                begun.add(folder)
                found[folder] = stage
    return list(found.items())


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints that a run folder holds."""
    return sorted(file.parent for file in folder.rglob("config.json") if any(file.parent.glob("*.safetensors")))


def _paths(folder: Path) -> list[str]:
    try:
        record = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        return [str(path) for one in record.values() for path in as_list(one["path"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _lies_in(path: str, folder: Path) -> bool:
    """Whether a path, as a run wrote it down relative to where it was begun, is a folder or lies in it."""
    return any((base / path).is_relative_to(folder) for base in folder.parents)
