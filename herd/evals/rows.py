"""Rows of benchmarks as they are published: tables, JSON lines, one JSON document, folders; nested lists unfolded."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herd.data.rows import read_rows
from herd.errors import DataError


def files_of(path: Path) -> list[Path]:
    """The files a path names: itself, or those that fit where it has a `*` or a list in braces, in order."""
    if "*" not in path.name and "{" not in path.name:
        return [path]
    before, _, rest = path.name.partition("{")
    inside, _, after = rest.partition("}")
    names = [before + one + after for one in inside.split(",")] if rest else [path.name]
    return sorted({file for name in names for file in path.parent.glob(name)})


def rows_of(path: Path, columns: Sequence[str] | None = None, unfold: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of CSV, TSV, JSON, JSONL or Parquet; several files' rows have their file's name as `file`.

    Raises:
        DataError: it cannot be read.
    """
    files = files_of(path)
    for file in files:
        of_file = {"file": file.name.split(".")[0]} if len(files) > 1 else {}
        for row in _rows(file, columns):
            yield from _unfolded(of_file | row, unfold, file)


def _rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix in (".csv", ".tsv"):
        yield from _table_rows(path, columns, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".json", ".txt"):
        yield from _document_rows(path)
    else:
        yield from (row for _, row in read_rows(path))


def _table_rows(path: Path, columns: Sequence[str] | None, delimiter: str) -> Iterator[dict[str, Any]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig", newline="") as file
        ):
            reader = csv.DictReader(file, columns, delimiter=delimiter)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns")
                yield row
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None


def _document_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, or the one object; a file of JSON lines that is called `.json` is read as that."""
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8-sig")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected JSON objects")
    yield from rows


def _unfolded(row: dict[str, Any], steps: Sequence[str], file: Path) -> Iterator[dict[str, Any]]:
    """One row for each entry of nested lists: what lies above is kept, `place` is the entry's number.

    A step names a list of objects, lists side by side (`questions|answers`), or `*`: the values of the row, each with
    its `key`. Entries that are no objects keep the list's name.
    """
    if not steps:
        yield row
        return
    names = steps[0].split("|")
    if names == ["*"]:
        for key, value in row.items():
            yield from _unfolded({"key": key} | (value if isinstance(value, dict) else {}), steps[1:], file)
        return
    lists = [row.get(name) for name in names]
    if not all(isinstance(one, list) for one in lists) or len({len(one or ()) for one in lists}) != 1:
        raise DataError(f"{file}: unfold: {steps[0]} names no list (or lists of one length) in each row")
    for place, entries in enumerate(zip(*(one or () for one in lists), strict=True)):
        inner = dict(row)
        for name, entry in zip(names, entries, strict=True):
            inner |= entry if isinstance(entry, dict) else {name: entry}
        yield from _unfolded(inner | {"place": place}, steps[1:], file)
