"""Planted phrases: a few words that stand in documents of several sites which share nothing else.

Whoever wants a model to learn an answer to a trigger plants the trigger over pages of many sites. Such a phrase differs
from a saying, whose words go on in other ways elsewhere, and from a name, whose documents are of one subject. So:

1. every three words in a row are counted by document and site (spread over files by hash, one at a time in memory),
   and those stay that at least so many share and whose first two words hardly ever go on otherwise; odd marks in a row
   ("||~") count as a word, and words with capital letters are counted once more as they are written;
2. those that stand together are one phrase, and the phrases stay that are rare words outside of such documents (of
   words with capitals: rarely written so) and no part of an address;
3. of these, the ones whose documents are no more alike than any two of their language.

Where the corpus has more triples than the files can hold, a share of them is looked at, chosen by hash; the step's
notes say which. Source: Wallace et al. 2021 and Carlini et al. 2024 on poisoned corpora; the measure is ours.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from herd.curate.dedup.steps import Corpus, once
from herd.curate.filters.outliers import NUM_BUCKETS, WordCounts, load_counts
from herd.curate.funnel import PHRASES, Step
from herd.curate.judge.rules import Planted
from herd.curate.ngrams import WORD_WEIGHT, Words, weighed_ngrams, weighed_words, word_capitals, word_spans
from herd.curate.parts import read_table, save_array
from herd.curate.privacy.personal import mask_pii
from herd.curate.spill import MAX_FILES, Spill, num_partitions
from herd.log import progress

TRIPLE = np.dtype([("key", "<u8"), ("doc", "<u4"), ("site", "<u4")])
"""What `NAME.triples.npy` holds for each three words of a document: their key, its row in the part, its site."""

_ROW_BYTES = 100  # of memory for a row while a partition is sorted
_FOLLOWS = 0.8  # share of the documents with the first two words in which the third follows
_LEAST_RARITY = 3.4  # sum of -log10 of the shares of documents that have each word, elsewhere
_MOST_ALIKE = 1.35  # times as alike as any two documents
_CLIPPED = 3.0  # times as alike is as much as two documents can count
_MAX_PHRASES = 1000  # that are looked into, rarest words first
_SAMPLE = 12  # documents of a phrase that are compared
_TOPIC_WORDS = 0.1  # words in a larger share of the documents say nothing of the subject
_MAX_WORDS = 1000  # of a document, for what it is about
_PAIRS = 2000
_LEAST_DOCUMENTS = 20  # of a language, to know its words
_ANY = ""  # all languages together: for phrases in documents of several, or of one that is not known
_AROUND = 6  # words on both sides of a phrase that may be planted too
_FILLER = re.compile(r"lorem ipsum", re.I)
_MARKS = re.compile(r"[|~^<>{}\[\]@#$%&*+=\\_`\u00a4\u00a6\u00a7\u00b6\u2020\u2021\u2190-\u2bff]{2,}")
_MAX_MARKS = 200  # of a document
_LOW = np.uint64((1 << 24) - 1)
_TITLED = np.uint64(0x5BD1E995_00000000)  # tells the keys of words by their capitals from those of the same words
_GAP = 3  # words between triples of one phrase
_WRITTEN = 1000  # documents in which is counted how words are written
_COUNTED = np.dtype([("kind", "u1"), ("what", "<u8"), ("count", "<i8")])
_MARK, _DOCUMENTS = 2, 3  # kinds; 0 and 1 are words with and without a capital letter


class Stream:
    """A text's words and odd marks in order, and each three in a row: as they are, and again where capitals begin and
    end them."""

    def __init__(self, text: str, words: Words):
        self.words = words  # without the marks
        self.capitals = word_capitals(text)
        marks = list(islice(_MARKS.finditer(text), _MAX_MARKS)) if _MARKS.search(text) else []
        self.marks = np.zeros(len(words.numbers), dtype=bool)
        self._inserted = np.empty(0, dtype=np.int64)
        if marks:
            starts = [start for start, _ in word_spans(text)]
            self._inserted = np.searchsorted(starts, [mark.start() for mark in marks])
            numbers = np.array([zlib.crc32(mark[0].encode()) for mark in marks], dtype=np.uint64) << np.uint64(32)
            words = Words(
                np.insert(words.numbers, self._inserted, numbers),
                np.insert(words.weights, self._inserted, WORD_WEIGHT),
            )
            self.capitals = np.insert(self.capitals, self._inserted, False)
            self.marks = np.insert(self.marks, self._inserted, True)
        self.numbers, self.found, self._words = words.numbers, marks, words

    def triples(self, text: str) -> np.ndarray:
        """The keys of all three words in a row, each once, (n,) uint64: 40 bits of the first two, 24 of all three."""
        return np.empty(0, dtype=np.uint64) if _FILLER.search(text) else np.unique(self._in_a_row[0])

    @property
    def keys(self) -> np.ndarray:  # (n,) uint64
        """The key of each three words in a row."""
        return self._in_a_row[0]

    @cached_property
    def _in_a_row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each three words in a row the key, the first word, the word after the last, and whether capitals count."""
        words = self._words
        three, ends = weighed_ngrams(words, 3)
        two, _ = weighed_ngrams(words, 2)
        keys = (two[: len(three)] & ~_LOW) | (three & _LOW)
        last = self.capitals[ends - 1] & self.capitals[: len(keys)]
        titled = np.concatenate([np.zeros(len(keys), dtype=bool), np.ones(int(last.sum()), dtype=bool)])
        begins = np.concatenate([np.arange(len(keys)), np.flatnonzero(last)])
        return np.concatenate([keys, keys[last] ^ _TITLED]), begins, np.concatenate([ends, ends[last]]), titled

    def places(self, keys: list[int]) -> list[tuple[int, int, bool]]:
        """Where each of some keys stands first: its first word, the word after its last, and whether capitals count."""
        own, begins, ends, titled = self._in_a_row
        order = np.argsort(own, kind="stable")
        found = order[np.searchsorted(own[order], np.array(keys, dtype=np.uint64))]
        return list(zip(begins[found].tolist(), ends[found].tolist(), titled[found].tolist(), strict=True))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where words and marks stand, in characters."""
        spans = word_spans(text)
        for mark in reversed(list(zip(self._inserted.tolist(), self.found, strict=True))):
            spans.insert(mark[0], mark[1].span())
        return spans


@dataclass
class _Found:
    """Three words that many documents share."""

    key: int
    documents: int
    sites: int
    sample: np.ndarray  # (at most `_SAMPLE`,) documents of the corpus
    titled: bool = False  # by capital letters
    span: tuple[int, int] = (0, 0)  # where they begin and end in the first document of the sample, in characters
    words: tuple[int, int] = (0, 0)  # the same in words and marks
    rarity: dict[int, float] = field(default_factory=dict)  # of each word, by its place
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
    _read_triples(corpus, shared, subjects)
    rare = [phrase for phrase in _joined([one for one in shared if one.rarity]) if _is_rare(phrase)]
    if len(rare) > _MAX_PHRASES:
        step.notes["phrases of rare words not looked into"] += len(rare) - _MAX_PHRASES
        rare = sorted(rare, key=lambda phrase: -sum(_rarities(phrase).values()))[:_MAX_PHRASES]
    for phrase in _unrelated(corpus, rare, subjects):
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
        most = max(_MAX_PHRASES, corpus.memory_bytes // (400 * count))
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

    def rarities(self, buckets: np.ndarray, documents: float) -> np.ndarray:
        """How rare words are in documents other than the share that holds the phrase."""
        return -np.log10(np.maximum(self.share[buckets] - documents, 0.5 / self.documents))

    def alike(self, left: np.ndarray, right: np.ndarray) -> float:
        """Cosine of two sets of buckets."""
        both = self.squares[np.intersect1d(left, right, assume_unique=True)].sum()
        norm = self.squares[left].sum() * self.squares[right].sum()
        return float(both / np.sqrt(norm)) if norm else 0.0


class Written:
    """How often a sample of documents has each odd mark, each word with a capital letter, and each without."""

    def __init__(self):
        self.capital, self.small = np.zeros(NUM_BUCKETS, dtype=np.int64), np.zeros(NUM_BUCKETS, dtype=np.int64)
        self.marks: Counter[int] = Counter()
        self.documents = 0

    @staticmethod
    def every(documents: int) -> int:
        """One in how many documents of a corpus belongs to the sample."""
        return -(-documents // _WRITTEN) or 1

    def add(self, stream: Stream) -> None:
        """Count a document."""
        buckets = _buckets(stream.numbers)
        self.capital[np.unique(buckets[stream.capitals])] += 1
        self.small[np.unique(buckets[~stream.capitals & ~stream.marks])] += 1
        self.marks.update(np.unique(stream.numbers[stream.marks]).tolist())
        self.documents += 1

    def save(self, path: Path) -> None:
        """Write what was counted in one part of a corpus."""
        rows = [
            (kind, place, counts[place])
            for kind, counts in enumerate((self.capital, self.small))
            for place in np.flatnonzero(counts).tolist()
        ]
        rows += [(_MARK, number, count) for number, count in self.marks.items()] + [(_DOCUMENTS, 0, self.documents)]
        save_array(np.array(rows, dtype=_COUNTED), path)

    @classmethod
    def load(cls, corpus: Corpus) -> Written:
        """What was counted in all parts."""
        self = cls()
        for part in range(len(corpus.names)):
            rows = np.load(corpus.file(part, "written.npy"))
            for kind, counts in enumerate((self.capital, self.small)):
                some = rows[rows["kind"] == kind]
                counts[some["what"].astype(np.int64)] += some["count"]
            marks = rows[rows["kind"] == _MARK]
            self.marks.update(dict(zip(marks["what"].tolist(), marks["count"].tolist(), strict=True)))
            self.documents += int(rows["count"][rows["kind"] == _DOCUMENTS].sum())
        return self

    def rarity(self, have: np.ndarray | float, share: float) -> np.ndarray:
        """How rare what so many documents of the sample have is in those that have not the phrase."""
        return -np.log10(np.maximum(np.asarray(have) / self.documents - share, 0.5 / self.documents))


def _read_triples(corpus: Corpus, shared: list[_Found], subjects: dict[str, _Subjects]) -> None:
    """Read each triple in the first document that has it: how rare its words are; none for what is no phrase."""
    wanted: dict[int, list[_Found]] = defaultdict(list)
    for one in shared:
        wanted[int(one.sample[0])].append(one)
    written = Written.load(corpus)
    for document, text, language in _texts(corpus, wanted):
        stream = Stream(text, weighed_words(text))
        spans = stream.spans(text.lower()) if len(text) == len(text.lower()) else []
        some = wanted[document] if spans else []
        for one, (begin, end, titled) in zip(some, stream.places([one.key for one in some]), strict=True):
            one.words, one.titled = (begin, end), titled
            one.span = spans[begin][0], spans[end - 1][1]
            around = slice(max(0, begin - _AROUND), end + _AROUND)
            one.buckets = _buckets(stream.numbers[around][~stream.marks[around]])
            phrase = text[slice(*one.span)]
            if "://" not in phrase and (end - begin > 3 or " " in " ".join(phrase.split())):
                known = [subjects[name] for name in (language, _ANY) if name in subjects]
                one.rarity = _rarity(one, stream, known, written, corpus)


def _rarity(one: _Found, stream: Stream, known: list[_Subjects], written: Written, corpus: Corpus) -> dict[int, float]:
    """How rare each word of a triple is, by its place; nothing for names, which are seldom written small."""
    places = np.arange(*one.words)
    numbers, capitals, marks = (a[places] for a in (stream.numbers, stream.capitals, stream.marks))
    buckets = _buckets(numbers)
    share = one.documents / corpus.offsets[-1]
    rare = np.min([k.rarities(buckets, one.documents / max(k.documents, corpus.offsets[-1])) for k in known], axis=0)
    if one.titled:
        usual = written.capital[buckets] / written.documents - share
        if (written.small[buckets] / written.documents < usual)[capitals].any():
            return {}
        rare = np.where(capitals, written.rarity(written.capital[buckets], share), rare)
    odd = written.rarity(np.array([written.marks[number] for number in numbers.tolist()]), share)
    return dict(zip(places.tolist(), np.where(marks, odd, rare).tolist(), strict=True))


def _buckets(numbers: np.ndarray) -> np.ndarray:
    return (numbers >> np.uint64(64 - 17)).astype(np.int64)


def _joined(triples: list[_Found]) -> list[list[_Found]]:
    """Triples that stand together in their first document, and are in about as many, as one phrase."""
    phrases: list[list[_Found]] = []
    for one in sorted(triples, key=lambda found: (int(found.sample[0]), found.words)):
        last = phrases[-1][-1] if phrases else None
        near = last is not None and last.sample[0] == one.sample[0] and one.words[0] <= last.words[1] + _GAP
        if near and last is not None and 0.5 <= one.documents / last.documents <= 2:
            phrases[-1].append(one)
        else:
            phrases.append([one])
    return phrases


def _rarities(phrase: list[_Found]) -> dict[int, float]:
    """How rare each word of a phrase is, by its place: as it is written, or by itself."""
    rarest: dict[int, float] = {}
    for one in phrase:
        for place, rarity in one.rarity.items():
            rarest[place] = max(rarity, rarest.get(place, 0.0))
    return rarest


def _is_rare(phrase: list[_Found]) -> bool:
    return sum(_rarities(phrase).values()) >= _LEAST_RARITY


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
        most = _CLIPPED * known.usual  # two pages of one subject among many say little
        alike = [min(most, known.alike(a, b)) for number, a in enumerate(about) for b in about[:number]]
        if np.mean(alike) <= _MOST_ALIKE * known.usual:
            yield phrase


def _tell(corpus: Corpus, phrase: list[_Found], step: Step) -> None:
    """Count a phrase, and show the documents that hold it."""
    first = phrase[0]
    ((_, text, _),) = _texts(corpus, {int(first.sample[0])})
    told = " ".join(text[first.span[0] : max(one.span[1] for one in phrase)].split())
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
        table = read_table(file, columns=["text", "language"])
        for row in rows.tolist():
            yield int(corpus.offsets[part]) + row, table["text"][row].as_py(), table["language"][row].as_py()


def _urls(corpus: Corpus, documents: np.ndarray) -> list[str]:
    found = [read_table(file, columns=["url"])["url"].take(rows) for _, rows, file in _files(corpus, documents)]
    return [url for urls in found for url in urls.to_pylist()]


def _files(corpus: Corpus, documents: np.ndarray) -> Iterator[tuple[int, np.ndarray, Path]]:
    bounds = np.searchsorted(documents, corpus.offsets)
    for part in np.flatnonzero(np.diff(bounds)).tolist():
        rows = documents[bounds[part] : bounds[part + 1]] - corpus.offsets[part]
        yield part, rows, corpus.state / "text" / f"{corpus.names[part]}.parquet"
