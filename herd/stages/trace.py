"""Trace: from a document of a token shard back to its URL, its crawl record and the filters it passed."""

from __future__ import annotations

import json as json_format
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from herd.config import settings
from herd.curate.read.documents import as_list, parquet_files
from herd.data.split import is_held_out
from herd.errors import DataError
from herd.parquet import whole_rows

_COLUMNS = ("id", "url", "date", "title", "language", "source", "group", "place", "quality", "text")
_EXCERPT = 300


@settings
class TraceSettings:
    """Find the origin of a document in a packed shard, given by its number or by one of its tokens."""

    path: Path
    """Token shard: `train/SOURCE-00000.npy` in a run folder of `herd pack`."""
    document: int | None = None
    """Number of the document in the shard, from 0."""
    token: int | None = None
    """Or the position of a token in the shard, from 0: its document is taken."""
    documents: list[Path] | None = None
    """Folders of the documents that were packed; default: those recorded in the pack's run folder."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self):
        if (self.document is None) == (self.token is None):
            raise ValueError("give either document or token")
        if min(self.document or 0, self.token or 0) < 0:
            raise ValueError("document and token must be at least 0")


def run(settings: TraceSettings) -> None:
    """Print the document's lineage."""
    lineage = trace(settings.path, document=settings.document, token=settings.token, documents=settings.documents)
    if settings.json:
        print(json_format.dumps(lineage, indent=1))
        return
    for name, value in lineage.items():
        print(f"{name:<10} {', '.join(value) if isinstance(value, list) else value}")


def trace(
    shard: Path, *, document: int | None = None, token: int | None = None, documents: Path | list[Path] | None = None
) -> dict[str, Any]:
    """The output of `herd trace` as a dictionary.

    Raises:
        DataError: no such shard or document, or the packed documents are missing or changed.
    """
    manifest, pack = _manifest(shard), shard.resolve().parent.parent
    ends = manifest["document_ends"]
    number = int(np.searchsorted(ends, token, side="right")) if token is not None else document or 0
    if number >= len(ends):
        raise DataError(
            f"{shard}: holds {len(ends):,} documents and {ends[-1] if ends else 0:,} tokens, no such position"
        )
    index = json_format.loads((pack / "index.json").read_text(encoding="utf-8"))
    packed = json_format.loads((pack / "inputs.json").read_text(encoding="utf-8"))["documents"]["path"]
    folders = [Path(folder) for folder in as_list(documents or packed)]
    if gone := [folder for folder in folders if not folder.exists()]:
        raise DataError(f"{gone[0]}: the packed documents are missing; give their folder: documents=...")
    files = [file for folder in folders for file in parquet_files(folder)]
    file = files[min(int(shard.stem.rpartition("-")[2]), len(files) - 1)]
    row = _row(file, shard.resolve().parent.name, manifest["source"], index["holdout"], number)
    if row is None or len(row["text"].encode()) != manifest["document_bytes"][number]:
        raise DataError(f"{file}: does not match {shard}; give the documents that were packed: documents=...")
    begin = ends[number - 1] if number else 0
    text = row.pop("text")
    passed = _passed(file)
    known = {name: value for name, value in row.items() if value not in (None, "")}
    return known | {
        "file": str(file),
        "tokens": f"{begin} to {ends[number]}",
        "passed": passed,
        "text": text[:_EXCERPT],
    }


def _manifest(shard: Path) -> dict[str, Any]:
    try:
        return json_format.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"{shard}: no token shard with its .json; expected train/SOURCE-00000.npy of a pack run"
        ) from None


def _row(file: Path, side: str, source: str, holdout: float, number: int) -> dict[str, Any] | None:
    """The row with this number in the shard of a side and source, by the rules and in the order of `herd pack`."""
    present = set(pq.ParquetFile(file).schema_arrow.names)
    columns = [name for name in _COLUMNS if name in present]
    count = 0
    for row in whole_rows(file, Counter(), [*columns, "drop"]):
        if row.pop("drop") is not None or not row["text"]:
            continue
        place = "heldout" if is_held_out(row["group"] or "", holdout) else "train"
        if (place, row["source"] or "documents") == (side, source):
            if count == number:
                return row
            count += 1
    return None


def _passed(file: Path) -> list[str]:
    """The steps of the funnel that kept documents, in order; a kept document passed them all."""
    funnel = file.parent.parent / "funnel.json"
    if not funnel.exists():
        return []
    steps = json_format.loads(funnel.read_text(encoding="utf-8"))["steps"]
    return [step["name"] for step in steps if step["documents_out"]]
