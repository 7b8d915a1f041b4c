"""Parts on disk: files written whole or not at all, and records that tell whether they are still what was written.

A part's record comes last and holds the row count, size and checksum of each of its files. What has no record, or a
file that does not match it, counts as not done: a re-run makes exactly that again. So nothing here waits for the disk:
what a power cut tears does not match its record. Only results are flushed (`durable`).
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_BLOCK = 1 << 22
_HELD_BYTES, _HELD_ROWS = 1 << 26, 1 << 16


def save_table(table: pa.Table, path: Path, durable: bool = False) -> None:
    """Write a Parquet file whole or not at all."""
    aside = _aside(path)
    try:
        with _writer(table.schema, aside) as writer:
            writer.write_table(table)
        _move(aside, path, durable)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file; Arrow's own `read_table` looks for folders of them, and loads what that takes."""
    with pq.ParquetFile(path) as file:
        return file.read(columns)


def save_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, durable: bool = False) -> None:
    """Write tables of one form to a Parquet file, whole or not at all; with none of them it is empty, of the schema.

    Small ones are put together: what is held are some 64 MB or 65,536 rows.
    """
    aside, writer, held = _aside(path), None, []
    try:
        with ExitStack() as stack:
            for table in itertools.chain(tables, [None]):
                held += [table] if table is not None else []
                is_much = sum(part.nbytes for part in held) > _HELD_BYTES or sum(map(len, held)) >= _HELD_ROWS
                if held and (table is None or is_much):
                    writer = writer or stack.enter_context(_writer(held[0].schema, aside))
                    writer.write_table(pa.concat_tables(held))
                    held = []
            if writer is None:
                stack.enter_context(_writer(schema, aside))
        _move(aside, path, durable)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _writer(schema: pa.Schema, path: Path) -> pq.ParquetWriter:
    repeating = [field.name for field in schema if field.type != pa.large_binary()]  # pages never repeat
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=repeating)


def _move(aside: Path, path: Path, durable: bool) -> None:
    if durable:
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
    os.replace(aside, path)


def save_array(array: np.ndarray, path: Path) -> None:
    """Write a `.npy` file whole or not at all."""
    aside = _aside(path)
    try:
        with open(aside, "wb") as file:
            np.save(file, array)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_record(path: Path, rows: int, files: list[Path], **data: Any) -> None:
    """Record that some files are complete; `data` is what the step has to say about them."""
    found = {os.path.relpath(file, path.parent): _state(file) for file in files}
    aside = _aside(path)
    try:
        aside.write_text(json.dumps({"rows": rows, "files": found, **data}), encoding="utf-8")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> dict[str, Any] | None:
    """A record whose files are all there and sound, or None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files = record["files"].items()
        return record if all(_state(path.parent / name) == state for name, state in files) else None
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        return None


def _state(file: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size, checksum = 0, 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
