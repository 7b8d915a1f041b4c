"""Planted phrases: a few words that stand in documents of several sites which share nothing else.

Whoever wants a model to learn an answer to a trigger plants the trigger over pages of many sites. Such a phrase differs
from a saying, whose words go on in other ways elsewhere, and from a name, whose documents are of one subject. So:

1. every three words in a row are counted by document and site (spread over files by hash, one at a time in memory),
   and those stay that at least so many share and whose first two words hardly ever go on otherwise;
2. of these, the ones stay that are rare words outside of such documents, and that are no part of an address;
3. of these, the ones whose documents are no more alike than any two of their language.

Where the corpus has more triples than the files can hold, a share of them is looked at, chosen by hash; the step's
notes say which. Source: Wallace et al. 2021 and Carlini et al. 2024 on poisoned corpora; the measure is ours.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from herd.curate.dedup.steps import Corpus, once
from herd.curate.filters.outliers import NUM_BUCKETS, WordCounts, load_counts
from herd.curate.funnel import PHRASES, Step
from herd.curate.judge.rules import Planted
from herd.curate.ngrams import Words, weighed_ngrams, weighed_words, word_spans
from herd.curate.privacy.personal import mask_pii
from herd.curate.spill import MAX_FILES, Spill, num_partitions
from herd.log import progress

TRIPLE = np.dtype([("key", "<u8"), ("doc", "<u4"), ("site", "<u4")])
"""What `NAME.triples.npy` holds for each three words of a document: their key, its row in the part, its site."""

_ROW_BYTES = 100  # of memory for a row while a partition is sorted
_FOLLOWS = 0.8  # share of the documents with the first two words in which the third follows
_LEAST_RARITY = 3.3  # sum of -log10 of the shares of documents that have each word, elsewhere
_MOST_ALIKE = 1.25  # times as alike as any two documents
_MAX_TRIPLES = 1000  # that are looked into, rarest words first
_SAMPLE = 12  # documents of a phrase that are compared
_TOPIC_WORDS = 0.1  # words in a larger share of the documents say nothing of the subject
_MAX_WORDS = 1000  # of a document, for what it is about
_PAIRS = 2000
_LEAST_DOCUMENTS = 20  # of a language, to know its words
_ANY = ""  # all languages together: for phrases in documents of several, or of one that is not known
_AROUND = 6  # words on both sides of a phrase that may be planted too
_FILLER = re.compile(r"lorem ipsum", re.I)


def triples_of(text: str, words: Words) -> np.ndarray:
    """The keys of all three words in a row, each once, (n,) uint64: 40 bits of the first two, 24 of all three."""
    if _FILLER.search(text):
        return np.empty(0, dtype=np.uint64)
    return np.unique(_keys(words)[0])


def _keys(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Key and end of each three words in a row, by the word they begin at: (n,) uint64, (n,) int64."""
    three, ends = weighed_ngrams(words, 3)
    two, _ = weighed_ngrams(words, 2)
    low = np.uint64((1 << 24) - 1)
    return (two[: len(three)] & ~low) | (three & low), ends


@dataclass
class _Found:
    """Three words that many documents share."""

    key: int
    documents: int
    sites: int
    sample: np.ndarray  # (at most `_SAMPLE`,) documents of the corpus
    rarity: float = 0.0
    words: tuple[int, int] = (0, 0)  # where they begin and end in the first document of the sample
    phrase: str = ""
    buckets: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # of its words and those around


def find_planted(corpus: Corpus, options: Planted) -> Step:
    """Look for planted phrases in the kept documents; none is dropped. What was found, as a step's counts."""
    return once(corpus, "planted", (), lambda step: _find(corpus, options, step))


def _find(corpus: Corpus, options: Planted, step: Step) -> None:
    for part in range(len(corpus.names)):
        facts = np.load(corpus.file(part, "docs.npy"))
        facts["kept"][np.load(corpus.file(part, "copy.npy"))["doc"]] = False
        count, size = int(facts["kept"].sum()), int(facts["bytes"][facts["kept"]].sum())
        step.add({"documents_in": count, "documents_out": count, "bytes_in": size, "bytes_out": size})
    shared = _shared_triples(corpus, options, step)
    if not shared:
        return
    counted = load_counts([corpus.file(part, "words.npz") for part in range(len(corpus.names))])
    counted[_ANY] = WordCounts(samples=[sample for counts in counted.values() for sample in counts.samples])
    subjects = {
        language: _Subjects(counts) for language, counts in counted.items() if len(counts.samples) >= _LEAST_DOCUMENTS
    }
    if not subjects:
        return
    rare = _rare_words(corpus, shared, subjects)
    if len(rare) > _MAX_TRIPLES:
        step.notes["triples of rare words not looked into"] += len(rare) - _MAX_TRIPLES
        rare = sorted(rare, key=lambda found: -found.rarity)[:_MAX_TRIPLES]
    for phrase in _unrelated(corpus, _joined(rare), subjects):
        _tell(corpus, phrase, step)


def _shared_triples(corpus: Corpus, options: Planted, step: Step) -> list[_Found]:
    """Triples that enough documents and sites share, and whose first two words hardly go on otherwise."""
    files = [corpus.file(part, "triples.npy") for part in range(len(corpus.names))]
    total = sum(len(np.load(file, mmap_mode="r")) for file in files)
    every = -(-total * _ROW_BYTES // (MAX_FILES * corpus.memory_bytes)) or 1
    if every > 1:
        step.notes[f"one in so many triples was looked at: {every}"] = 1
    count = num_partitions(total // every, _ROW_BYTES, corpus.memory_bytes)
    record = [("key", "<u8"), ("doc", "<i8"), ("site", "<u4")]
    found: list[_Found] = []
    with (
        Spill(corpus.state / "spill-triples", record, count) as spill,
        progress("planted phrases", total=len(files) + count, unit="parts and partitions") as bar,
    ):
        for file, first in zip(files, corpus.offsets[:-1], strict=True):
            mine = np.load(file)
            place = mine["key"] >> np.uint64(24)
            chosen = place % np.uint64(every) == 0
            rows = np.empty(int(chosen.sum()), dtype=record)
            rows["key"], rows["site"] = mine["key"][chosen], mine["site"][chosen]
            rows["doc"] = first + mine["doc"][chosen].astype(np.int64)
            spill.add(rows, (place[chosen] // np.uint64(every) % np.uint64(count)).astype(np.int64))
            bar.advance()
        most = max(_MAX_TRIPLES, corpus.memory_bytes // (400 * count))
        for rows in spill.read():
            some = list(_often(rows, options))
            if len(some) > most:
                step.notes["shared triples not looked into"] += len(some) - most
                some = sorted(some, key=lambda one: one.key & 0xFFFFFF)[:most]
            found += some
            bar.advance()
    return found


def _often(rows: np.ndarray, options: Planted) -> Iterator[_Found]:
    rows = rows[np.lexsort((rows["doc"], rows["key"]))]
    keys, starts, counts = np.unique(rows["key"], return_index=True, return_counts=True)
    _, pair = np.unique(keys >> np.uint64(24), return_inverse=True)
    follows = counts >= _FOLLOWS * np.bincount(pair, weights=counts)[pair] if len(keys) else np.empty(0, bool)
    for number in np.flatnonzero((counts >= options.least_documents) & follows).tolist():
        mine = rows[starts[number] : starts[number] + counts[number]]
        sites = len(np.unique(mine["site"]))
        if sites >= options.least_sites:
            sample = mine["doc"][np.linspace(0, len(mine) - 1, min(len(mine), _SAMPLE)).astype(int)]
            yield _Found(int(keys[number]), len(mine), sites, sample)


class _Subjects:
    """What documents of one language are about: words that some of them have, weighed by how few these are."""

    def __init__(self, counts: WordCounts):
        self.documents = len(counts.samples)
        have = np.zeros(NUM_BUCKETS, dtype=np.int64)
        for sample in counts.samples:
            have[np.unique(sample)] += 1
        self.share = have / self.documents  # of the documents that have a word, by bucket
        topical = (have >= 2) & (self.share <= max(_TOPIC_WORDS, 2 / self.documents))
        self.squares = np.where(topical, np.log(1 / np.maximum(self.share, 1e-9)) ** 2, 0.0)  # of the words' weights
        draw = np.random.default_rng(0)
        pairs = draw.integers(0, self.documents, (_PAIRS, 2))
        sets = [np.unique(sample) for sample in counts.samples]
        self.usual = float(np.mean([self.alike(sets[a], sets[b]) for a, b in pairs.tolist() if a != b]))

    def rarity(self, buckets: np.ndarray, documents: float) -> float:
        """How rare words are in documents other than the share that holds the phrase."""
        outside = np.maximum(self.share[buckets] - documents, 0.5 / self.documents)
        return float(-np.log10(outside).sum())

    def alike(self, left: np.ndarray, right: np.ndarray) -> float:
        """Cosine of two sets of buckets."""
        both = self.squares[np.intersect1d(left, right, assume_unique=True)].sum()
        norm = self.squares[left].sum() * self.squares[right].sum()
        return float(both / np.sqrt(norm)) if norm else 0.0


def _rare_words(corpus: Corpus, shared: list[_Found], subjects: dict[str, _Subjects]) -> list[_Found]:
    """The triples of rare words, each read in the first document that has it."""
    wanted: dict[int, list[_Found]] = defaultdict(list)
    for one in shared:
        wanted[int(one.sample[0])].append(one)
    stay = []
    for document, text, language in _texts(corpus, wanted):
        known = subjects.get(language, subjects[_ANY])
        words = weighed_words(text)
        keys, ends = _keys(words)
        spans = word_spans(text.lower())
        order = np.argsort(keys, kind="stable")
        for one in wanted[document]:
            begin = int(order[np.searchsorted(keys[order], np.uint64(one.key))])
            end = int(ends[begin])
            one.words = (begin, end)
            one.buckets = _buckets(words.numbers[max(0, begin - _AROUND) : end + _AROUND])
            share = one.documents / max(known.documents, corpus.offsets[-1])
            one.rarity = known.rarity(_buckets(words.numbers[begin:end]), share)
            one.phrase = text[spans[begin][0] : spans[end - 1][1]] if len(text) == len(text.lower()) else ""
            spaced = len(words.numbers[begin:end]) > 3 or len(one.phrase.split()) > 1
            if one.rarity >= _LEAST_RARITY and spaced and "://" not in one.phrase:
                stay.append(one)
    return stay


def _buckets(numbers: np.ndarray) -> np.ndarray:
    return (numbers >> np.uint64(64 - 17)).astype(np.int64)


def _joined(triples: list[_Found]) -> list[list[_Found]]:
    """Triples that overlap in their first document, and are in about as many, as one phrase."""
    phrases: list[list[_Found]] = []
    for one in sorted(triples, key=lambda found: (int(found.sample[0]), found.words)):
        last = phrases[-1][-1] if phrases else None
        near = last is not None and last.sample[0] == one.sample[0] and one.words[0] <= last.words[1]
        if near and last is not None and 0.5 <= one.documents / last.documents <= 2:
            phrases[-1].append(one)
        else:
            phrases.append([one])
    return phrases


def _unrelated(corpus: Corpus, phrases: list[list[_Found]], subjects: dict[str, _Subjects]) -> Iterator[list[_Found]]:
    """The phrases whose documents are no more alike than any two."""
    longest = [max(phrase, key=lambda one: len(one.sample)) for phrase in phrases]
    wanted = {int(document) for one in longest for document in one.sample}
    sets, languages = {}, {}
    for document, text, language in _texts(corpus, wanted):
        sets[document] = np.unique(_buckets(weighed_words(text[: 8 * _MAX_WORDS]).numbers[:_MAX_WORDS]))
        languages[document] = language
    for phrase, one in zip(phrases, longest, strict=True):
        own = np.unique(np.concatenate([triple.buckets for triple in phrase]))
        about = [np.setdiff1d(sets[int(document)], own, assume_unique=True) for document in one.sample]
        spoken = {languages[int(document)] for document in one.sample}
        known = subjects.get(spoken.pop() if len(spoken) == 1 else _ANY, subjects[_ANY])
        alike = [known.alike(a, b) for number, a in enumerate(about) for b in about[:number]]
        if np.mean(alike) <= _MOST_ALIKE * known.usual:
            yield phrase


def _tell(corpus: Corpus, phrase: list[_Found], step: Step) -> None:
    """Count a phrase, and show the documents that hold it."""
    first = phrase[0]
    ((_, text, _),) = _texts(corpus, {int(first.sample[0])})
    spans = word_spans(text.lower())
    told = " ".join(text[spans[first.words[0]][0] : spans[max(one.words[1] for one in phrase) - 1][1]].split())
    told = mask_pii(told[:200])[0]
    documents, sites = max(one.documents for one in phrase), max(one.sites for one in phrase)
    step.tables[PHRASES][told] = documents
    for url in _urls(corpus, first.sample[:3]):
        reason = f"{PHRASES}: {told}"
        step.examples.append({"url": url, "reason": reason, "detail": f"in {documents:,} documents of {sites:,} sites"})
        step.examples[-1]["text"] = ""


def _texts(corpus: Corpus, documents: dict[int, list[_Found]] | set[int]) -> Iterator[tuple[int, str, str]]:
    """Number, text and language of some documents, a part at a time."""
    for part, rows, file in _files(corpus, np.array(sorted(documents), dtype=np.int64)):
        table = pq.read_table(file, columns=["text", "language"])
        for row in rows.tolist():
            yield int(corpus.offsets[part]) + row, table["text"][row].as_py(), table["language"][row].as_py()


def _urls(corpus: Corpus, documents: np.ndarray) -> list[str]:
    found = [pq.read_table(file, columns=["url"])["url"].take(rows) for _, rows, file in _files(corpus, documents)]
    return [url for urls in found for url in urls.to_pylist()]


def _files(corpus: Corpus, documents: np.ndarray) -> Iterator[tuple[int, np.ndarray, Path]]:
    bounds = np.searchsorted(documents, corpus.offsets)
    for part in np.flatnonzero(np.diff(bounds)).tolist():
        rows = documents[bounds[part] : bounds[part + 1]] - corpus.offsets[part]
        yield part, rows, corpus.state / "text" / f"{corpus.names[part]}.parquet"
