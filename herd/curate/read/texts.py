"""Texts to learn a tokenizer from: curated documents, or the rows and files of any other folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from herd.curate.read.documents import as_list
from herd.curate.read.encoding import decode
from herd.curate.read.pages import find_files, read_pages
from herd.errors import DataError
from herd.log import say
from herd.parquet import tell_lost, whole_rows


class Text(NamedTuple):
    """A document as far as a tokenizer cares."""

    text: str
    source: str
    language: str
    group: str


def read_texts(paths: Path | list[Path], seen: Callable[[int], object] = lambda rows: None) -> Iterator[Text]:
    """The kept documents of `herd curate` folders, or the rows and files of any other folders or files, in order.

    `seen` hears of the rows as they are read, dropped ones too.

    Raises:
        DataError: nothing there to read, a damaged Parquet file, or one without a `text` column.
    """
    for file in (file for path in as_list(paths) for file in _files(path)):
        if file.suffix == ".parquet":
            yield from _read_parquet(file, seen)
        else:
            yield from _read_pages(file, seen)


def num_rows(paths: Path | list[Path]) -> int | None:
    """How many rows `read_texts` will see, where the files say so: None unless all are Parquet."""
    files = [file for path in as_list(paths) for file in _files(path)]
    if any(file.suffix != ".parquet" for file in files):
        return None
    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except (pa.ArrowException, OSError):
        return None  # reading it will say what is wrong


def _files(path: Path) -> list[Path]:
    return find_files([path / "documents" if (path / "documents").is_dir() else path])


def _read_parquet(path: Path, seen: Callable[[int], object]) -> Iterator[Text]:
    try:
        names = pq.read_schema(path).names
        if "text" not in names:
            raise DataError(f"{path}: has no `text` column, only {', '.join(names)}")
        counts: Counter[str] = Counter()
        for row in whole_rows(path, counts, ("text", "source", "language", "group", "drop")):
            seen(1)
            if row["text"] and row.get("drop") is None:
                yield Text(row["text"], *(row.get(key) or "" for key in ("source", "language", "group")))
        seen(counts["rows lost"])
        tell_lost(path, counts)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None


def _read_pages(path: Path, seen: Callable[[int], object]) -> Iterator[Text]:
    counts: Counter[str] = Counter()
    for page in read_pages(path, counts):
        seen(1)
        if page.kind in ("html", "feed", "pdf"):
            raise DataError(
                f"{path}: holds web pages; turn them into documents first: herd curate pages={path} out=..."
            )
        if page.content:
            yield Text(decode(page.content, page.charset)[0], page.source, "", page.url)
    if counts["corrupt"]:
        say(f"  {path}: {counts['corrupt']:,} damaged records left out")
