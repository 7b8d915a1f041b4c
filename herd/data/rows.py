"""Rows of data as people keep them: JSON lines (plain, gz, zst), Parquet, JSON arrays, CSV and TSV (plain, gz, zst)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from herd.config import settings
from herd.errors import DataError
from herd.parquet import tell_lost, whole_rows
from herd.run import atomic_write

_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".parquet")
_TABLES = tuple(kind + packed for kind in (".csv", ".tsv") for packed in ("", ".gz", ".zst"))
_WHOLE = tuple(".json" + packed for packed in ("", ".gz", ".zst"))
SUFFIXES = (*_LINES, *_TABLES, *_WHOLE)
_SPLIT = re.compile(r"(?:^|[._-])(train|test|val|valid|validation|dev|eval)(?=[._-])", re.IGNORECASE)


@settings
class RowSettings:
    """How rows are read."""

    columns: dict[str, str] = field(default_factory=dict)
    """What the file calls a key that docs/tuning.md names: {prompt: QUESTION, completion: REPLY}."""
    weights: dict[str, float] = field(default_factory=dict)
    """Of files by name, how often their rows count: 2 twice, 0.5 every second row; 1 otherwise."""
    too_long: Literal["leave_out", "cut", "refuse"] = "leave_out"
    """What becomes of a row that is longer than `batch.row_tokens` or the model's context: it is left out and counted,
    loses its end, or ends the run."""

    def __post_init__(self) -> None:
        if any(not 0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError("weights must be 0 or more")


def read_rows(paths: Path | Sequence[Path], options: RowSettings | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of files and folders of such files, with where it is (`file, row 3`), in a fixed order.

    Raises:
        DataError: a path is missing, a folder has no such file, a file is damaged, a row is not an object, or
            `options` names a file or columns that are not there.
    """
    files = [file for path in ([paths] if isinstance(paths, str | Path) else paths) for file in _files(Path(path))]
    if options is None:
        for file in files:
            yield from _rows(file)
        return
    if unknown := [name for name in options.weights if name not in (known := [file.name for file in files])]:
        raise DataError(f"weights names {unknown[0]}, which is not among the files: {', '.join(known)}")
    for file in files:
        owed = 0.0
        for place, row in _rows(file):
            owed += options.weights.get(file.name, 1.0)
            named = _renamed(place, row, options.columns)
            while owed >= 1 - 1e-9:
                owed -= 1
                yield place, named


def _renamed(place: str, row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the keys that Herd knows."""
    if not columns:
        return row
    found = {key: row[column] for key, column in columns.items() if column in row}
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    if not found:
        raise DataError(f"{place}: has none of the columns {', '.join(columns.values())}; it has {', '.join(row)}")
    if taken := found.keys() & rest.keys():
        key = min(taken)
        raise DataError(f"{place}: has a column `{key}` beside `{columns[key]}`, which is to be called so; rename it")
    return rest | found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _files_in(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a file that ends with {', '.join(SUFFIXES)}")
    return [path]


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """A folder's data files by the split that their names say (train, test, val, ...), those of none under "".

    Documents (`.json`), which may be anything's settings, count only where there are no others.
    """
    names = sorted(file for file in folder.iterdir() if file.name.endswith(SUFFIXES))
    found: dict[str, list[Path]] = {}
    for file in [file for file in names if not file.name.endswith(_WHOLE)] or names:
        hit = _SPLIT.search(file.name)
        found.setdefault(hit[1].lower() if hit else "", []).append(file)
    return found


def _files_in(folder: Path) -> list[Path]:
    splits = splits_in(folder)
    files = sorted(file for several in splits.values() for file in several)
    if not files:
        raise DataError(f"{folder}: no data files; expected {', '.join(SUFFIXES)}")
    splits.pop("", None)
    if "train" in splits and len(splits) > 1:
        raise DataError(
            f"{folder}: holds the splits {', '.join(sorted(splits))}, which are not to be mixed; name the files to "
            f"read, such as {next(file for file in files if 'train' in file.name.lower())}"
        )
    return files


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    if file.name.endswith(_TABLES):
        return _table_rows(file)
    return _document_rows(file) if file.name.endswith(_WHOLE) else _json_rows(file)


def _document_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list; a file of JSON lines that is called `.json` is read as that."""
    try:
        with _open(file) as stream:
            text = stream.read()
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or truncated ({error})") from None
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{file}, row {number}", _object(file, number, line)
        return
    try:
        rows = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: expected an object, got {type(row).__name__}")
        yield f"{file}, row {number}", row


def _table_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table with a header; every value is text."""
    csv.field_size_limit(1 << 30)  # its own limit of 128 KiB is less than an article
    try:
        with _open(file) as stream:
            text = io.StringIO(stream.read().decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, delimiter="\t" if ".tsv" in file.suffixes else ",")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise DataError(f"{file}, row {number} (line {reader.line_num}): expected {columns} columns")
            yield f"{file}, row {number}", row
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as CSV ({error})") from None


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{file}, row {number}", _object(file, number, line)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or truncated ({error})") from None


def _open(file: Path) -> Any:  # a binary file, of Python or of Arrow
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.name.endswith(".zst"):
        return pa.input_stream(str(file), compression="zstd")
    return open(file, "rb")


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, row {number}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{file}, row {number}: expected an object, got {type(row).__name__}")
    return row


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    counts: Counter[str] = Counter()
    try:
        for number, row in enumerate(whole_rows(file, counts), 1):
            yield f"{file}, row {number}", row
        tell_lost(file, counts)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error})") from None


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    atomic_write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
