"""Documents that hold a benchmark's questions: found by runs of words that both share.

A question counts as found in a document when one of its 13-grams of words stands there, or, where it is too short for
that many, when most of its 8-grams do. Runs that many texts of a benchmark share are its wording ("which of the
following statements"), not its content, and what is mostly wording is left out; so is what it quotes in quotation
marks, law and verse, which stands in documents that never saw the question. Every field of a row that holds text is
looked at by itself.

Sources: GPT-3 (Brown et al. 2020, appendix C: 13-grams), the Llama 3 paper, section 5.1.4 (8-grams).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from herd.config import settings
from herd.curate.ngrams import WORD_WEIGHT, Words, weighed_ngrams, weighed_words, word_spans
from herd.errors import DataError
from herd.parquet import tell_lost, whole_rows

_MAX_SHARED = 5  # texts of a benchmark that may share an n-gram before it counts as wording
_SKIPPED_FIELDS = (
    "id",
    "idx",
    "index",
    "url",
    "source",
    "license",
    "task",
    "category",
    "type",
    "name",
    "path",
    "split",
)
_BITMAP_BITS = 22
_QUOTATION = re.compile(
    r"“[^”]{30,3000}”|\"[^\"]{30,3000}\"|«[^»]{30,3000}»|„[^“”]{30,3000}[“”]|‘[^‘]{60,3000}?’(?!\w)|[「『][^」』]{10,1000}[」』]"
)
_MOST_QUOTED = 2 / 3  # of the words of a run that counts: documents that quote the same are no leak
_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".csv", ".tsv", ".md")


@settings
class Contamination:
    """Documents that hold questions of benchmarks."""

    benchmarks: list[Path] = field(default_factory=list)
    """Files or folders of questions (JSONL, JSON, Parquet, CSV, text; gzip too); none: nothing is looked for."""
    long_words: int = 13
    """One shared run of so many words is enough."""
    short_words: int = 8
    """Of questions without one, most runs of so many words must be there."""
    short_share: float = 0.7
    """How many of those short runs, as a share (0 to 1)."""
    action: Literal["drop", "flag"] = "drop"
    """Whether such documents are dropped, or only counted and shown."""
    most_documents: int = 100
    """Runs of words that stand in more documents of the corpus than this are common property and no leak."""

    def __post_init__(self):
        if not 2 <= self.short_words <= self.long_words:
            raise ValueError("short_words must be at least 2 and at most long_words")
        if not 0 < self.short_share <= 1:
            raise ValueError("short_share must be above 0 and at most 1")


class Question(NamedTuple):
    """One row of a benchmark."""

    benchmark: str
    row: int
    texts: tuple[str, ...]


class Hit(NamedTuple):
    """A question found in a document."""

    benchmark: str
    row: int
    span: str  # the words that both share


@dataclass
class Benchmarks:
    """The n-grams of some benchmarks, ready to look documents up in.

    Raises:
        DataError: a file cannot be read, or none holds a question long enough to be told from chance.
    """

    options: Contamination
    names: list[str] = field(default_factory=list)
    num_questions: dict[str, int] = field(default_factory=dict)
    num_searchable: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        self._rows: list[tuple[str, int]] = []  # question -> benchmark, row
        texts: dict[tuple[str, bytes], _Text] = {}
        for question in read_questions(self.options.benchmarks):
            self.num_questions[question.benchmark] = self.num_questions.get(question.benchmark, 0) + 1
            for words, quoted in _long_texts(question, self.options.short_words):
                key = question.benchmark, words.numbers.tobytes()
                texts.setdefault(key, _Text(words, quoted, []))[2].append(len(self._rows))
            self._rows.append((question.benchmark, question.row))
        self.names = list(self.num_questions)
        self.common: frozenset[int] = frozenset()
        self._tables = self._build(texts)
        self._count_short()
        if self.options.benchmarks and not texts:
            raise DataError(
                f"{self.options.benchmarks[0]}: no question has {self.options.short_words} words in a row; "
                "shorter ones cannot be told from chance"
            )

    def _build(self, texts: dict[tuple[str, bytes], _Text]) -> dict[int, Table]:
        """The tables of long and short n-grams, without those that are mostly wording or what the question quotes."""
        n = self.options.short_words
        of_benchmark: dict[str, list[np.ndarray]] = {}
        for (name, _), (words, _, _) in texts.items():
            of_benchmark.setdefault(name, []).append(np.unique(weighed_ngrams(words, n)[0]))
        wording = {name: _common(keys) for name, keys in of_benchmark.items()}
        found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {self.options.long_words: [], n: []}
        for (name, _), (words, quoted, questions) in texts.items():
            is_wording = np.zeros(len(words.numbers), dtype=bool)
            numbers, ends = weighed_ngrams(words, n)
            for place in np.flatnonzero(np.isin(numbers, wording[name])).tolist():
                is_wording[place : ends[place]] = True
            before = np.concatenate([[0], is_wording.cumsum()])
            quoted_before = np.concatenate([[0], quoted.cumsum()])
            for length, pairs in found.items():
                keys, ends = weighed_ngrams(words, length)
                starts = np.arange(len(keys))
                is_content = before[ends] - before[starts] <= (ends - starts) / 2
                is_own = quoted_before[ends] - quoted_before[starts] <= (ends - starts) * _MOST_QUOTED
                keys = np.unique(keys[is_content & is_own])
                pairs += [(keys, np.full(len(keys), question)) for question in questions]
        return {length: _table(pairs) for length, pairs in found.items()}

    def _count_short(self) -> None:
        """How many short n-grams of each question count, and which benchmarks' questions can be found at all."""
        counts = np.zeros(len(self._rows), dtype=np.int64)
        findable = np.zeros(len(self._rows), dtype=bool)
        for n, (_, _, questions) in self._tables.items():
            findable[questions] = True
            if n == self.options.short_words:
                np.add.at(counts, questions, 1)
        self._short_totals = counts.tolist()
        self.num_searchable = dict(Counter(self._rows[i][0] for i in np.flatnonzero(findable).tolist()))

    def find(self, text: str) -> list[Hit]:
        """The questions that stand in a text."""
        words = weighed_words(text)
        hits: dict[int, tuple[int, int]] = {}  # question -> first word, end
        shared: Counter = Counter()
        first: dict[int, tuple[int, int]] = {}
        for n, table in self._tables.items():
            numbers, ends = weighed_ngrams(words, n)
            for place, question in _matches(numbers, table, self.common):
                if n == self.options.long_words:
                    hits.setdefault(question, (place, int(ends[place])))
                elif question not in hits:
                    shared[question] += 1
                    first.setdefault(question, (place, int(ends[place])))
        for question, count in shared.items():
            if question not in hits and count >= max(2, self.options.short_share * self._short_totals[question]):
                hits[question] = first[question]
        if not hits:
            return []
        spans = word_spans(text)
        return [
            Hit(*self._rows[question], text[spans[place][0] : spans[min(end, len(spans)) - 1][1]])
            for question, (place, end) in sorted(hits.items())
            if place < len(spans)
        ]

    def ngrams_in(self, text: str) -> list[int]:
        """The benchmarks' n-grams that stand in a text: to count in how many documents each does."""
        words = weighed_words(text)
        found: set[int] = set()
        for n, table in self._tables.items():
            numbers, _ = weighed_ngrams(words, n)
            found.update(int(numbers[place]) for place, _ in _matches(numbers, table))
        return sorted(found)

    def leave_out(self, documents: Counter[int]) -> int:
        """Take n-grams for common property that stand in too many documents; returns how many they are."""
        self.common = frozenset(n for n, count in documents.items() if count > self.options.most_documents)
        return len(self.common)


class _Text(NamedTuple):
    """A text of questions."""

    words: Words
    quoted: np.ndarray  # (words,) bool, whether each stands in quotation marks
    questions: list[int]


def _long_texts(question: Question, least_words: int) -> Iterator[tuple[Words, np.ndarray]]:
    """The texts of a question that are long enough, and which of their words they quote: law, verses, sayings.

    A text that is one quotation counts as the question's own where no other says enough.
    """
    found = []
    for text in question.texts:
        words = weighed_words(text)
        if words.weights.sum() >= WORD_WEIGHT * least_words:
            found.append((words, _quoted(text, len(words.numbers))))
    own = [words.weights[~quoted].sum() >= WORD_WEIGHT * least_words for words, quoted in found]
    for number, (words, quoted) in enumerate(found):
        is_alone = quoted.all() and not any(own[:number] + own[number + 1 :])
        yield words, np.zeros_like(quoted) if is_alone else quoted


def _quoted(text: str, count: int) -> np.ndarray:
    quoted = np.zeros(count, dtype=bool)
    marked = [match.span() for match in _QUOTATION.finditer(text)]
    starts = np.array([start for start, _ in word_spans(text)] if marked else [], dtype=np.int64)
    for start, end in marked if len(starts) == count else ():
        quoted[(starts >= start) & (starts < end)] = True
    return quoted


Table = tuple[np.ndarray, np.ndarray, np.ndarray]
"""N-grams in rising order, a bitmap that most other n-grams fail, and the question of each n-gram."""


def _common(keys: list[np.ndarray]) -> np.ndarray:
    """The n-grams that more than a few texts have, in rising order."""
    numbers, counts = np.unique(np.concatenate(keys), return_counts=True)
    return numbers[counts > _MAX_SHARED]


def _table(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Table:
    keys = np.concatenate([keys for keys, _ in pairs] or [np.empty(0, np.uint64)])
    questions = np.concatenate([questions for _, questions in pairs] or [np.empty(0, np.int64)])
    order = np.lexsort((questions, keys))
    bitmap = np.zeros(1 << _BITMAP_BITS, dtype=bool)
    bitmap[keys >> np.uint64(64 - _BITMAP_BITS)] = True
    return keys[order], bitmap, questions[order]


def _matches(numbers: np.ndarray, table: Table, common: frozenset[int] = frozenset()) -> Iterator[tuple[int, int]]:
    """Place in the text and question of every n-gram that is a benchmark's and not common; each n-gram once."""
    keys, bitmap, questions = table
    if not len(keys) or not len(numbers):
        return
    places = np.flatnonzero(bitmap[numbers >> np.uint64(64 - _BITMAP_BITS)])
    seen: set[int] = set()
    for place in places.tolist():
        number = numbers[place]
        start = int(np.searchsorted(keys, number))
        if start == len(keys) or keys[start] != number or int(number) in seen or int(number) in common:
            continue
        seen.add(int(number))
        while start < len(keys) and keys[start] == number:
            yield place, int(questions[start])
            start += 1


# ---- reading benchmarks ----------------------------------------------------------------------------------------------


def read_questions(paths: list[Path]) -> Iterator[Question]:
    """The rows of benchmark files; a benchmark is named by its file, or by the folder where a folder is given.

    Raises:
        DataError: a path is missing or cannot be read.
    """
    for path in paths:
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder of benchmark questions")
        files = (
            sorted(f for f in path.rglob("*") if _suffix(f) in _SUFFIXES and f.is_file()) if path.is_dir() else [path]
        )
        if not files or (files == [path] and _suffix(path) not in _SUFFIXES):
            raise DataError(f"{path}: no benchmark file; expected {', '.join(_SUFFIXES)} (gzip too)")
        row = 0
        for file in files:
            for texts in _rows(file):
                row += 1
                yield Question(path.name.partition(".")[0], row, texts)


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _rows(file: Path) -> Iterator[tuple[str, ...]]:
    try:
        if _suffix(file) == ".parquet":
            counts: Counter[str] = Counter()
            for row in whole_rows(file, counts):
                yield tuple(_texts(row))
            tell_lost(file, counts)
            return
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
            content = stream.read().decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a benchmark: {error}") from None
    yield from _parsed(file, content)


def _parsed(file: Path, content: str) -> Iterator[tuple[str, ...]]:
    suffix = _suffix(file)
    try:
        if suffix == ".json" and (rows := _json(content)) is not None:
            yield from (tuple(_texts(row)) for row in rows)
        elif suffix in (".jsonl", ".ndjson", ".json"):
            lines = (line for line in content.split("\n") if line.strip())
            yield from (tuple(_texts(json.loads(line))) for line in lines)
        elif suffix in (".csv", ".tsv"):
            csv.field_size_limit(1 << 30)
            yield from map(tuple, csv.reader(io.StringIO(content), delimiter="\t" if suffix == ".tsv" else ","))
        else:
            yield from ((paragraph,) for paragraph in content.split("\n\n") if paragraph.strip())
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{file}: not valid {suffix[1:].upper()}: {error}") from None


def _json(content: str) -> list[Any] | None:
    """The rows of a JSON file: of a list, or one object however it is laid out; None for one object a line."""
    try:
        value = json.loads(content)
    except ValueError:
        if content.lstrip()[:1] == "[":
            raise
        return None
    return value if isinstance(value, list) else [value]


def _texts(value: Any, name: str = "") -> Iterator[str]:
    """Every text in a row, however deep, without names and links."""
    if isinstance(value, str):
        if name.lower() not in _SKIPPED_FIELDS:
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)


# ---- the report ------------------------------------------------------------------------------------------------------


@dataclass
class ContaminationReport:
    """What was found of each benchmark in a corpus."""

    documents: int = 0
    contaminated: int = 0
    by_benchmark: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, document: dict[str, Any], hits: list[Hit], examples: int = 5) -> None:
        """Count one document and what was found in it."""
        self.documents += 1
        self.contaminated += bool(hits)
        for name in {hit.benchmark for hit in hits}:
            entry = self.by_benchmark.setdefault(name, {"documents": 0, "rows": set(), "examples": []})
            entry["documents"] += 1
            mine = [hit for hit in hits if hit.benchmark == name]
            entry["rows"] |= {hit.row for hit in mine}
            if len(entry["examples"]) < examples:
                example = {"url": document["url"], "row": mine[0].row, "span": mine[0].span[:300]}
                entry["examples"].append(example)

    def as_dict(self, benchmarks: Benchmarks) -> dict[str, Any]:
        """Plain data: for each benchmark its questions, how many could be looked for, and how many were found."""
        table = {}
        for name in benchmarks.names:
            entry = self.by_benchmark.get(name, {"documents": 0, "rows": set(), "examples": []})
            questions, found = benchmarks.num_questions[name], len(entry["rows"])
            table[name] = {
                "questions": questions,
                "searchable": benchmarks.num_searchable.get(name, 0),
                "found": found,
                "share_found": round(found / questions, 4),
                "documents": entry["documents"],
                "examples": entry["examples"],
            }
        return {"documents": self.documents, "contaminated": self.contaminated, "benchmarks": table}
