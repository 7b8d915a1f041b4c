"""Rows of Parquet files from anywhere: lengths are looked at first, damage is counted and never fatal.

A file of two kilobytes may hold one value of 60 MB that stands in every row, or a page that unpacks to gigabytes. A
text that stands in many rows is held once, one that is too long is never made, a row group that cannot be read takes no
other along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.log import say

MAX_VALUE_BYTES = 64_000_000
"""Of a text; a longer one is left out."""
_ROWS = 256  # of a batch
_BATCH_BYTES = 1 << 28
_LARGE, _RATIO = 1 << 26, 500  # what unpacks to more bytes than this, and than so many times its size, is a bomb
_DICTIONARY_BYTES = 1 << 24  # of a nested column: who writes files changes to plain values after 1 or 2 MB
_FAULTS = (OSError, MemoryError, OverflowError, pa.ArrowException)


class Length(int):
    """What is known of a value that is too long to be looked at: its bytes."""


def read_rows(
    source: Path | IO[bytes],
    counts: Counter,
    columns: Collection[str] | None = None,
    *,
    flat: bool = False,
    max_bytes: int = MAX_VALUE_BYTES,
) -> Iterator[dict[str, Any] | None]:
    """The rows, one at a time; a text of more than `max_bytes` as a `Length`, None for a row that has no Python values.

    Of `columns`, those that are there; with `flat` without nested ones. Row groups that cannot be read are counted in
    `counts["corrupt"]`, the rows that they take along in `counts["rows lost"]`.

    Raises:
        OSError, ArrowException: it is no Parquet file.
    """
    schema = pq.read_schema(source)
    fields = [field for field in schema if columns is None or field.name in columns]
    fields = [field for field in fields if not (flat and pa.types.is_nested(field.type))]
    texts = [field.name for field in fields if _is_text(field.type)]
    if not isinstance(source, Path):
        source.seek(0)
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        names = [field.name for field in fields]
        for number in range(file.num_row_groups):
            group, done = file.metadata.row_group(number), 0
            try:
                rows = _batch_rows(source, group, set(names))
                for batch in file.iter_batches(rows, row_groups=[number], columns=names):
                    for row in _plain_rows(batch, max_bytes):
                        done += 1
                        yield row
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
    """Say how many rows of a file were damaged or too large, where there were any."""
    if counts["rows lost"]:
        say(
            f"  {source}: {counts['rows lost']:,} rows left out, damaged or with a value over {MAX_VALUE_BYTES:,} bytes"
        )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _batch_rows(source: Path | IO[bytes], group: pq.RowGroupMetaData, names: set[str]) -> int:
    """How many rows to read at once, such that they are not much; a nested text cannot be held once for all its rows.

    Raises:
        OSError: it is a bomb.
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
        if below and column.has_dictionary_page and column.physical_type == "BYTE_ARRAY":
            largest = _dictionary_bytes(source, column.dictionary_page_offset)
            if largest > _DICTIONARY_BYTES:
                raise OSError("has a dictionary that is too large")
            each = largest * column.num_values // max(group.num_rows, 1)
            rows = min(rows, max(_BATCH_BYTES // max(each, 1), 1))
    return rows


def _dictionary_bytes(source: Path | IO[bytes], offset: int) -> int:
    """The bytes that a dictionary unpacks to, by the head of its page: two numbers in Thrift's compact form."""
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
    lengths = {name: _lengths(batch[name]) for name in batch.schema.names if pa.types.is_dictionary(batch[name].type)}
    columns = {name: batch[name] for name in batch.schema.names}
    for number in range(len(batch)):
        try:
            sizes = {name: size[number] or 0 for name, size in lengths.items()}
            long = {name: Length(size) for name, size in sizes.items() if size > max_bytes}
            yield {name: column[number].as_py() for name, column in columns.items() if name not in long} | long
        except (ValueError, LookupError, OverflowError, pa.ArrowException):
            yield None


def _lengths(column: pa.DictionaryArray) -> list[int | None]:
    return pc.binary_length(column.dictionary).take(column.indices).to_pylist()
