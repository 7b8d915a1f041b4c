"""Rows of data as people keep them: JSON lines (plain, gz, zst) and Parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from herd.errors import DataError
from herd.parquet import tell_lost, whole_rows
from herd.run import atomic_write

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".parquet")


def read_rows(paths: Path | Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of files and folders of such files, with where it is (`file, row 3`), in a fixed order.

    Raises:
        DataError: a path is missing, a folder has no such file, a file is damaged or a row is not an object.
    """
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for file in _files(Path(path)):
            yield from _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise DataError(f"{path}: no data files; expected {', '.join(SUFFIXES)}")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a file that ends with {', '.join(SUFFIXES)}")
    return [path]


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
