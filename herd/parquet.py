"""Rows of untrusted Parquet files: lengths are checked before values are made; damage is counted and never fatal.

A file of two kilobytes may hold one value of 60 MB that occurs in every row, or a page that unpacks to gigabytes. A
text that occurs in many rows is held once, one that is too long is never made, and an unreadable row group does not
affect the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.log import say

T = TypeVar("T")

MAX_VALUE_BYTES = 64_000_000
"""Longest text; a longer one is left out."""
MAX_TABLE_BYTES = 64_000_000
"""Most bytes of text in one table."""
_ROWS = 256  # of a batch
_BATCH_BYTES = 1 << 26
_LARGE, _RATIO = 1 << 26, 500  # a decompression bomb unpacks to more bytes than this and to over 500 times its size
_DICTIONARY_BYTES = 1 << 24  # most, of a nested column: writers change to plain values after 1 or 2 MB
_OF_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_FAULTS = (OSError, MemoryError, OverflowError, pa.ArrowException)


class Length(int):
    """Stands for a value that is too long to be read: its number of bytes."""


def read_rows(
    source: Path | IO[bytes],
    counts: Counter,
    columns: Collection[str] | None = None,
    *,
    flat: bool = False,
    max_bytes: int = MAX_VALUE_BYTES,
) -> Iterator[dict[str, Any] | None]:
    """The rows, one at a time; a text over `max_bytes` is a `Length`, a row that cannot be converted to Python is None.

    `columns` that do not exist are ignored; `flat` skips nested columns. Unreadable row groups are counted in
    `counts["corrupt"]`, their rows in `counts["rows lost"]`.

    Raises:
        OSError, ArrowException: not a Parquet file.
    """
    yield from _read(source, counts, columns, flat, lambda batch: ((1, row) for row in _plain_rows(batch, max_bytes)))


def whole_tables(
    source: Path, counts: Counter, columns: Collection[str] | None = None, *, max_bytes: int = MAX_TABLE_BYTES
) -> Iterator[pa.Table]:
    """The rows that can be read whole, in tables of at most `max_bytes` of text (or of a single row); the others are
    counted, for `tell_lost`.

    Raises:
        OSError, ArrowException: not a Parquet file.
    """
    for table, lost in _read(source, counts, columns, False, lambda batch: _plain_tables(batch, max_bytes)):
        counts["rows lost"] += lost
        if len(table):
            yield table


def _read(
    source: Path | IO[bytes],
    counts: Counter,
    columns: Collection[str] | None,
    flat: bool,
    parts_of: Callable[[pa.RecordBatch], Iterable[tuple[int, T]]],
) -> Iterator[T]:
    """The parts that `parts_of` makes of each batch; it gives each with its number of rows."""
    schema = pq.read_schema(source)
    fields = [field for field in schema if columns is None or field.name in columns]
    fields = [field for field in fields if not (flat and pa.types.is_nested(field.type))]
    texts = [field.name for field in fields if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
    if not isinstance(source, Path):
        source.seek(0)
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        names = [field.name for field in fields]
        for number in range(file.num_row_groups):
            group, done = file.metadata.row_group(number), 0
            try:
                rows = _batch_rows(source, group, set(names), set(texts))
                for batch in file.iter_batches(rows, row_groups=[number], columns=names):
                    for size, part in parts_of(batch):
                        done += size
                        yield part
            except _FAULTS:
                counts["corrupt"] += 1
                counts["rows lost"] += max(group.num_rows - done, 0)


def whole_rows(source: Path, counts: Counter, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows that can be read whole; others are counted (`tell_lost` says how many).

    Raises:
        OSError, ArrowException: it is no Parquet file.
    """
    for row in read_rows(source, counts, columns):
        if row is None or any(isinstance(value, Length) for value in row.values()):
            counts["rows lost"] += 1
        else:
            yield row


def tell_lost(source: Path, counts: Counter) -> None:
    """Print how many rows of a file were damaged or too large, if any."""
    if counts["rows lost"]:
        say(
            f"  {source}: {counts['rows lost']:,} rows left out, damaged or with a value over {MAX_VALUE_BYTES:,} bytes"
        )


def _batch_rows(source: Path | IO[bytes], group: pq.RowGroupMetaData, names: set[str], texts: set[str]) -> int:
    """How many rows to read at once within the memory limit: a repeated value of a nested column, or of one with 64-bit
    lengths, takes memory for every row.

    Raises:
        OSError: it is a decompression bomb.
    """
    rows = _ROWS
    for index in range(group.num_columns):
        column = group.column(index)
        name, _, below = column.path_in_schema.partition(".")
        if name not in names:
            continue
        unpacked, packed = column.total_uncompressed_size, max(column.total_compressed_size, 1)
        if unpacked > _LARGE and unpacked > _RATIO * packed:
            raise OSError("unpacks to too much")
        if name not in texts and column.has_dictionary_page and column.physical_type in _OF_BYTES:
            largest = _dictionary_bytes(source, column.dictionary_page_offset)
            if below and largest > _DICTIONARY_BYTES:
                raise OSError("has a dictionary that is too large")
            each = largest * column.num_values // max(group.num_rows, 1)
            rows = min(rows, max(_BATCH_BYTES // max(each, 1), 1))
    return rows


def _dictionary_bytes(source: Path | IO[bytes], offset: int) -> int:
    """The unpacked bytes of a dictionary, from its page header: two numbers in Thrift's compact encoding."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return _dictionary_bytes(file, offset)
    place = source.tell()
    source.seek(offset)
    head = source.read(16)
    source.seek(place)
    size = shift = 0
    for byte in head[3:9]:  # field 1 with its value, field 2
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return size >> 1  # zigzag


def _plain_rows(batch: pa.RecordBatch, max_bytes: int) -> Iterator[dict[str, Any] | None]:
    lengths = {name: _lengths(batch[name]) for name in batch.schema.names if _has_length(batch[name].type)}
    columns = {name: batch[name] for name in batch.schema.names}
    for number in range(len(batch)):
        try:
            sizes = {name: size[number] or 0 for name, size in lengths.items()}
            long = {name: Length(size) for name, size in sizes.items() if size > max_bytes}
            yield {name: column[number].as_py() for name, column in columns.items() if name not in long} | long
        except (ValueError, LookupError, OverflowError, pa.ArrowException):
            yield None


def _plain_tables(batch: pa.RecordBatch, max_bytes: int) -> Iterator[tuple[int, tuple[pa.Table, int]]]:
    """Tables without dictionary encoding, each with its number of rows and of rows left out."""
    texts = [column for column in batch.columns if _has_length(column.type)]
    sizes = np.array([[size or 0 for size in _lengths(column)] for column in texts] or [[0] * len(batch)])
    sums, long, begin = sizes.sum(0), sizes.max(0) > MAX_VALUE_BYTES, 0
    while begin < len(batch):
        if long[begin]:
            yield 1, (_NOTHING, 1)
            begin += 1
            continue
        stop = begin + 1
        while stop < len(batch) and not long[stop] and sums[begin : stop + 1].sum() <= max_bytes:
            stop += 1
        yield stop - begin, _valid(batch.slice(begin, stop - begin))
        begin = stop


def _valid(batch: pa.RecordBatch) -> tuple[pa.Table, int]:
    """The rows that are valid for their types, as a table; and the number of the others."""
    try:
        plain = [
            column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
        ]
        table = pa.Table.from_arrays(plain, batch.schema.names)
        table.validate(full=True)
        return table, 0
    except (ValueError, pa.ArrowException):
        if len(batch) == 1:
            return _NOTHING, 1
    parts = [_valid(batch.slice(row, 1)) for row in range(len(batch))]
    whole = [table for table, lost in parts if not lost]
    return (pa.concat_tables(whole) if whole else _NOTHING), len(parts) - len(whole)


_NOTHING = pa.table({})


def _has_length(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)


def _lengths(column: pa.Array) -> list[int | None]:
    if not pa.types.is_dictionary(column.type):
        return pc.binary_length(column).to_pylist()
    dictionary = column.dictionary  # a column of categories may be one of numbers
    if not (pa.types.is_string(dictionary.type) or pa.types.is_binary(dictionary.type) or _has_length(dictionary.type)):
        return [None] * len(column)
    return pc.binary_length(dictionary).take(column.indices).to_pylist()
