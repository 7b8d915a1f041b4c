"""Grades that a large model gives to a sample of documents, by a written rubric; a small classifier learns from them.

Curation never loads a model: it is handed a function `ask(prompts) -> answers`. What was graded is kept line by line,
so that a killed run goes on where it was.

Source: the Llama 3 paper, section 3.1.1 (quality requirements are written down, a chat model says whether a document
meets them, and a small model learns its answers); the same for code and reasoning pages.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from herd.config import settings
from herd.curate.extract.html import extract
from herd.curate.read.pages import find_files, read_pages
from herd.errors import DataError
from herd.log import progress
from herd.markup import read_markup
from herd.parquet import tell_lost, whole_rows

Ask = Callable[[list[str]], list[str]]
"""Answers of a model to some prompts, in order."""

_BATCH = 64
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@settings
class Rubric:
    """What a model is told to judge by."""

    name: str
    """What is judged: quality, code, reasoning, knowledge."""
    text: str
    """The requirements, in words; how the answer is to be given is added."""
    most: int = 5
    """The highest grade; the lowest is 0."""
    classes: dict[str, str] = field(default_factory=dict)
    """Instead of grades: the classes to choose from, each with what belongs to it."""

    def __post_init__(self):
        if self.most < 1:
            raise ValueError("most must be at least 1")
        if len(self.classes) == 1:
            raise ValueError("classes: one class is no choice")

    def prompt(self, document: str, characters: int = 4000) -> str:
        """The question to the model about one document; a long one is shown by its beginning and its middle."""
        if len(document) > characters:
            middle = len(document) // 2
            document = f"{document[: characters // 2]}\n[...]\n{document[middle : middle + characters // 2]}"
        if self.classes:
            choice = "\n".join(f"- {name}: {about}" for name, about in self.classes.items())
            how = f"Classes:\n{choice}\n\nAnswer with one line: `Class: <name>`."
        else:
            how = f"Answer with one line: `Grade: <0 to {self.most}>`."
        return f"{self.text.strip()}\n\nThe document:\n<document>\n{document}\n</document>\n\n{how}"

    def read(self, answer: str) -> float | str | None:
        """The grade (0 to 1) or class in an answer; None where there is none."""
        if self.classes:
            return self._read_class(answer)
        told = re.findall(r"grade\W{0,5}(-?\d+(?:\.\d+)?)", answer, re.I) or _NUMBER.findall(answer)[:1]
        if not told or not 0 <= float(told[-1]) <= self.most:
            return None
        return float(told[-1]) / self.most

    def _read_class(self, answer: str) -> str | None:
        told = re.findall(r"class\W{0,5}([^\n`*.]+)", answer, re.I)
        for place in (*reversed(told), answer):
            plain = place.strip().strip("`*'\"<>").lower()
            for name in self.classes:
                if plain == name.lower():
                    return name
        found = [name for name in self.classes if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answer, re.I)]
        return found[0] if len(found) == 1 else None


def read_rubric(path: Path) -> Rubric:
    """A rubric from a YAML file.

    Raises:
        DataError: the file is missing or not a rubric.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Rubric).validate_python(read_markup(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as a rubric: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: not a rubric: `{place}`: {first['msg'].removeprefix('Value error, ')}") from None


def grade(
    documents: list[dict[str, str]], rubric: Rubric, ask: Ask, path: Path, characters: int = 4000
) -> list[dict[str, Any]]:
    """Have every document judged; each answer is kept in `path` (JSONL) at once, and none is asked for twice.

    `documents` have `id` and `text`. The rows hold `id`, `grade` (0 to 1, a class, or null) and the `answer`.
    """
    known = {row["id"]: row for row in _rows(path)}
    waiting = [document for document in documents if document["id"] not in known]
    with progress("grade", total=len(documents), unit="documents", done=len(documents) - len(waiting)) as bar:
        for start in range(0, len(waiting), _BATCH):
            batch = waiting[start : start + _BATCH]
            answers = ask([rubric.prompt(document["text"], characters) for document in batch])
            answers = [answer.encode("utf-8", "replace").decode() for answer in answers]  # lone surrogates
            with open(path, "a", encoding="utf-8") as file:
                for document, answer in zip(batch, answers, strict=True):
                    row = {"id": document["id"], "grade": rubric.read(answer), "answer": answer[:500]}
                    known[row["id"]] = row
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            bar.advance(len(batch))
    return [known[document["id"]] for document in documents]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; what a kill left of the last line is taken off, so that the next one begins anew."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    yield from (json.loads(line) for line in whole.splitlines())


# ---- the documents ---------------------------------------------------------------------------------------------------


def sample_documents(
    paths: list[Path], number: int, seed: int = 0, wanted: Callable[[dict[str, str]], bool] = lambda document: True
) -> list[dict[str, str]]:
    """A sample of the wanted documents (`id`, `url`, `text`) that depends on their ids alone, in the order of its draw.

    Raises:
        DataError: there is none.
    """
    drawn: list[tuple[int, str, dict[str, str]]] = []  # a heap whose top is the last one that would be taken
    for document in filter(wanted, read_documents(paths)):
        key = int.from_bytes(blake2b(f"{seed} {document['id']}".encode(), digest_size=8).digest(), "little")
        entry = (-key, document["id"], document)
        if len(drawn) < number:
            heapq.heappush(drawn, entry)
        elif entry[:2] > drawn[0][:2]:
            heapq.heapreplace(drawn, entry)
    if not drawn:
        raise DataError(f"{', '.join(map(str, paths))}: no such document with text")
    return [document for _, _, document in sorted(drawn, key=lambda entry: (-entry[0], entry[1]))]


def read_documents(paths: list[Path]) -> Iterator[dict[str, str]]:
    """The documents (`id`, `url`, `text`) of curated Parquet (kept ones only), or of any pages that curation reads."""
    for path in paths:
        for file in find_files([path / "documents" if (path / "documents").is_dir() else path]):
            if _is_curated(file):
                yield from _kept(file)
                continue
            for page in read_pages(file, Counter()):
                text = extract(page.content, page.url, page.charset, page.kind).text
                if text.strip():
                    yield {"id": page.id, "url": page.url, "text": text}


def _is_curated(file: Path) -> bool:
    try:
        if Path(file).suffix != ".parquet":
            return False
        schema = pq.read_schema(file)
        is_text = "text" in schema.names and str(schema.field("text").type) in ("string", "large_string")
        return is_text and {"id", "url", "drop"} <= set(schema.names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}") from None


def _kept(file: Path) -> Iterator[dict[str, str]]:
    counts: Counter[str] = Counter()
    for row in whole_rows(file, counts, ("id", "url", "text", "drop")):
        if row["drop"] is None and (row["text"] or "").strip():
            yield {"id": row["id"], "url": row["url"], "text": row["text"]}
    tell_lost(file, counts)
