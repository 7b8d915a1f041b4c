"""Curated documents as `herd curate` writes them: Parquet files of the columns of `herd/types.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from herd.errors import DataError

COLUMNS = ["text", "source", "group", "quality", "drop"]
"""What every reader of them needs."""


def as_list(given: Any) -> Any:
    """One path as a list of one: settings that take documents take one or several."""
    return list(given) if isinstance(given, list | tuple) else [given]


def parquet_files(path: Path) -> list[Path]:
    """The files of curated documents, in the order of their shards.

    Raises:
        DataError: there are none, or one is no Parquet file of documents.
    """
    folder = path / "documents" if (path / "documents").is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not files:
        raise DataError(f"{folder}: no Parquet files; expected the documents that `herd curate` writes")
    for file in files:
        try:
            missing = set(COLUMNS) - set(pq.ParquetFile(file).schema_arrow.names)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as Parquet ({error})") from None
        if missing:
            raise DataError(f"{file}: lacks the column `{min(missing)}` of curated documents; run `herd curate` first")
    return files
