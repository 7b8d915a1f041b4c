"""Rows of benchmarks as they are published: tables, JSON lines, one JSON document, folders; nested lists unfolded."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from herd.data.rows import SUFFIXES, read_rows
from herd.errors import DataError


def is_pattern(path: Path) -> bool:
    """Whether a path may name several files: `*` in any part of it, or alternatives in braces in its name."""
    return "*" in str(path) or "{" in path.name


def files_of(path: Path) -> list[Path]:
    """The files a path names: itself, or those that fit where it is a pattern, in order."""
    if not is_pattern(path):
        return [path]
    first = next((place for place, part in enumerate(path.parts) if "*" in part), len(path.parts) - 1)
    root, folders = Path(*path.parts[:first]), path.parts[first:-1]
    return sorted({file for name in names_of(path) for file in root.glob("/".join((*folders, name)))})


def names_of(path: Path) -> list[str]:
    """The name of a path, or each that its braces give."""
    before, _, rest = path.name.partition("{")
    inside, _, after = rest.partition("}")
    return [before + one + after for one in inside.split(",")] if rest else [path.name]


def alike(path: Path) -> list[Path]:
    """Paths of the same name with every other ending of data, for the same rows are published in several."""
    ending = max((one for one in SUFFIXES if path.name.endswith(one)), key=len, default="")
    if not ending:
        return []
    stem = path.name.removesuffix(ending)
    return [path.with_name(stem + one) for one in (*SUFFIXES, "-*.parquet") if one != ending]


def rows_of(path: Path, columns: Sequence[str] | None = None, unfold: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of CSV, TSV, JSON, JSONL or Parquet; where the path is a pattern, each with its file's name as `file` (its
    folder's, where several folders have a file of that name). A `.txt` that is no JSON is one row with its `text`.

    Raises:
        DataError: it cannot be read.
    """
    files = files_of(path)
    names = [file.name.removesuffix(max((e for e in SUFFIXES if file.name.endswith(e)), default="")) for file in files]
    if len(set(names)) < len(names):
        names = [file.parent.name for file in files]
    for file, name in zip(files, names, strict=True):
        of_file = {"file": name.removesuffix(".txt")} if is_pattern(path) else {}
        for row in _rows(file, columns):
            yield from _unfolded(of_file | row, unfold, file)


def _rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".txt" and (text := _plain_text(path)) is not None:
        yield {"text": text}
    elif suffix in (".csv", ".tsv"):
        yield from _table_rows(path, columns, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".json", ".txt"):
        yield from _document_rows(path)
    else:
        yield from (row for _, row in read_rows(path))


def _plain_text(path: Path) -> str | None:
    """The text of a file that holds no JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.suffix != ".gz" else "{"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    return None if text.lstrip()[:1] in ("{", "[") else text


def _table_rows(path: Path, columns: Sequence[str] | None, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)  # its own limit of 128 KiB is less than an article
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
        plain = delimiter == "\t" and len({line.count("\t") for line in text.split("\n") if line}) == 1
        # most published TSV knows no quotes: " is a letter there
        quoting: Literal[0, 3] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
        reader = csv.DictReader(io.StringIO(text, newline=""), columns, delimiter=delimiter, quoting=quoting)
        names = list(reader.fieldnames or ())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}: two columns are called {twice[0]!r}")
        rows = list[dict[str, Any]]()
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}, line {reader.line_num}: expected {len(names)} columns")
            rows.append({name: _unquoted(value) for name, value in row.items()} if plain else row)
        yield from _with_lists(rows, names)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None


def _with_lists(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows whose columns of lists and mappings, which a table can only write out, are lists and mappings again.

    A column is one where every cell that is not empty is written as JSON or as Python writes it.
    """
    for name in names:
        cells = [_literal(row[name]) if row[name] else "" for row in rows]
        if any(cells) and not any(isinstance(cell, str) for cell in cells if cell != ""):
            rows = [row | {name: cell} for row, cell in zip(rows, cells, strict=True)]
    return rows


def _literal(text: str) -> Any:
    """What a cell holds, if it is a list or a mapping; else the text."""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list | dict) else text
    return text


def _unquoted(value: str) -> str:
    """A cell that some program put in quotes for the quotes in it, which it doubled."""
    inner = value[1:-1]
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else value


def _document_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, or the one object; a file of JSON lines that is called `.json` is read as that."""
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8-sig")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
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
