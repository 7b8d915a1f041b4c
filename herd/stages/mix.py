"""Mix: combine curated sources into one corpus with given weights, ready for `herd pack`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.config import settings
from herd.curate.mix import copies, epochs
from herd.curate.parts import save_tables
from herd.curate.read.documents import parquet_files
from herd.log import progress, say, size
from herd.parquet import tell_lost, whole_tables
from herd.run import Run, atomic_write, open_run

_NAME = re.compile(r"\w[\w.-]*$")


@settings
class MixSettings:
    """Mix sources by weight; a document may be repeated, up to a cap."""

    sources: dict[str, Path]
    """Name of each source -> its documents: a run folder of `herd curate` or a folder of Parquet files."""
    weights: dict[str, float]
    """Name of each source -> its share of the text, on any scale: {general: 50, maths: 25, code: 17, other: 8}."""
    out: Path
    """Run folder to write."""
    bytes: int | None = None
    """Target size of the text, in bytes; default: as much as the scarcest source allows."""
    max_epochs: float = 4.0
    """Most repetitions of a source."""
    seed: int = 0
    """Chooses which documents of a source are taken."""

    def __post_init__(self):
        if self.bytes is not None and self.bytes < 1:
            raise ValueError("bytes must be at least 1")
        if not self.sources:
            raise ValueError("sources: give at least one name with its documents")
        if empty := [name for name, path in self.sources.items() if path == Path()]:
            raise ValueError(f"sources: `{empty[0]}` is empty; give the folder of its documents")
        if odd := [name for name in self.sources if not _NAME.match(name)]:
            raise ValueError(f"sources: {odd[0]!r} becomes a file's name; use letters, digits, `-`, `_` and `.`")
        if not all(map(math.isfinite, (self.max_epochs, *self.weights.values()))):
            raise ValueError("weights and max_epochs must be finite numbers")


def run(settings: MixSettings) -> Path:
    """Write `documents/*.parquet`, with the name given here as `source`, and `mix.json`.

    Raises:
        ConfigError: sources and weights do not match.
        DataError: a source is not a folder of curated documents.
    """
    inputs = {f"sources.{name}": path for name, path in settings.sources.items()}
    with open_run(settings.out, stage="mix", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        files = {name: parquet_files(path) for name, path in settings.sources.items()}
        available = {name: sum(map(_kept_bytes, paths)) for name, paths in files.items()}
        repeats = epochs(available, settings.weights, settings.bytes, settings.max_epochs)
        run.need(disk_bytes=sum(available[name] * repeats[name] for name in files))
        figures = _write(run, files, repeats, settings)
        total = sum(row["bytes"] for row in figures.values())
        for name, row in figures.items():
            row |= {"epochs": round(repeats[name], 4), "share": round(row["bytes"] / max(1, total), 4)}
            say(f"  {name}: {row['share']:.1%} of the text, {repeats[name]:.2f} epochs of {size(available[name])}")
            if repeats[name] == settings.max_epochs and settings.bytes:
                say(f"    short of its weight: it would take more than max_epochs={settings.max_epochs:g}")
        atomic_write(run.path / "mix.json", json.dumps(figures, indent=1))
        run.finish({"documents": sum(row["documents"] for row in figures.values()), "bytes": total})
    return run.path


def _kept_bytes(file: Path) -> int:
    counts: Counter = Counter()
    total = sum(_bytes_of(_kept(table)) for table in whole_tables(file, counts, ["text", "drop"]))
    tell_lost(file, counts)
    return total


def _kept(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table["drop"]))


def _bytes_of(table: pa.Table) -> int:
    return pc.sum(pc.binary_length(table["text"])).as_py() or 0


def _write(run: Run, files: dict[str, list[Path]], repeats: dict[str, float], settings: MixSettings) -> dict[str, Any]:
    (run.path / "documents").mkdir(exist_ok=True)
    figures = {name: {"documents": 0, "bytes": 0} for name in files}
    with progress("mix", total=sum(map(len, files.values())), unit="files") as bar:
        for name, paths in files.items():
            for number, file in enumerate(paths):
                drawn = _drawn(file, name, repeats[name], settings.seed, figures[name])
                schema = pq.read_schema(file)
                save_tables(drawn, schema, run.path / "documents" / f"{name}-{number:05d}.parquet", durable=True)
                bar.advance()
    return figures


def _drawn(file: Path, name: str, repeats: float, seed: int, figures: dict[str, int]) -> Iterator[pa.Table]:
    """A file's documents, repeated as often as they are drawn, in parts."""
    for table in whole_tables(file, Counter()):  # lost rows were reported when the sizes were counted
        kept = _kept(table)
        counts = copies(kept["id"].to_pylist(), repeats, seed)
        place = kept.schema.get_field_index("source")
        kept = kept.set_column(place, "source", pa.array([name] * len(kept), pa.string()))
        taken = kept.take(np.repeat(np.arange(len(kept)), counts))
        figures["documents"] += len(taken)
        figures["bytes"] += _bytes_of(taken)
        yield taken
