"""Pack: curated documents become token shards, with whole groups (modules, sites) held out for evaluation."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from pydantic import BeforeValidator

from herd.config import settings
from herd.curate.read.documents import COLUMNS, as_list, parquet_files
from herd.data.shards import ShardWriter
from herd.data.split import is_held_out
from herd.errors import DataError
from herd.formats.vocabulary import open_tokenizer
from herd.log import amount, progress, say
from herd.parquet import tell_lost, whole_rows
from herd.run import Run, atomic_write, open_run
from herd.tokenizer.tokenizer import Tokenizer

_ROWS = 256  # documents encoded together


@settings
class PackSettings:
    """Encode curated documents into token shards."""

    documents: Annotated[list[Path], BeforeValidator(as_list)]
    """Run folders of `herd curate`, or folders of Parquet files with its columns; one or a list."""
    tokenizer: Path
    """Tokenizer: a run folder of `herd tokenizer`, a checkpoint, or a tokenizer file."""
    out: Path
    """Run folder to write."""
    holdout: float = 0.08
    """Share (0 to 1) of the groups held out from training."""

    def __post_init__(self):
        if not 0 <= self.holdout < 1:
            raise ValueError("holdout must be a share of at least 0 and less than 1")


def run(settings: PackSettings) -> Path:
    """Write `train/` and `heldout/` shards and `index.json`; a resumed run skips Parquet files that are finished."""
    inputs: dict[str, Path | str | Sequence[Path | str] | None] = {
        "documents": settings.documents,
        "tokenizer": settings.tokenizer,
    }
    with open_run(settings.out, stage="pack", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        files = [file for path in as_list(settings.documents) for file in parquet_files(path)]
        num_documents = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
        run.need(disk_bytes=2 * sum(file.stat().st_size for file in files))
        tokenizer = open_tokenizer(settings.tokenizer)
        with progress("pack", total=num_documents, unit="documents") as bar:
            parts = [_pack_file(run, settings, tokenizer, file, number, bar) for number, file in enumerate(files)]
        totals = {side: _sum(part[side] for part in parts) for side in ("train", "heldout")}
        if not sum(counts["tokens"] for counts in totals["train"].values()):
            folders = ", ".join(map(str, as_list(settings.documents)))
            raise DataError(f"{folders}: no document was kept for training; see the reasons in its report")
        index = {"tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "holdout": settings.holdout}
        atomic_write(run.path / "index.json", json.dumps(index | totals, indent=1))
        figures = {
            f"{side}_{what}": sum(counts[what] for counts in totals[side].values())
            for side in totals
            for what in ("documents", "tokens", "bytes")
        }
        say(f"  {amount(figures['train_tokens'])} tokens to train on, {amount(figures['heldout_tokens'])} held out")
        run.finish(figures=figures)
    return run.path


def _pack_file(run: Run, settings: PackSettings, tokenizer: Tokenizer, file: Path, number: int, bar) -> dict:
    """The shards of one Parquet file; if its record exists, an interrupted run had finished it."""
    record = run.path / "parts" / f"{number:05d}.json"
    if record.exists():
        done = json.loads(record.read_text(encoding="utf-8"))
        bar.advance(done["rows"])
        return done
    writers: dict[tuple[str, str], ShardWriter] = {}
    rows, counts = 0, Counter[str]()
    source = whole_rows(file, counts, COLUMNS)
    while batch := list(itertools.islice(source, _ROWS)):
        kept = [row for row in batch if row["drop"] is None and row["text"]]
        encoded = tokenizer.encode_arrays([row["text"] for row in kept], bos=True, eos=True)
        for row, tokens in zip(kept, encoded):
            side = "heldout" if is_held_out(row["group"] or "", settings.holdout) else "train"
            key = side, row["source"] or "documents"
            if key not in writers:
                writers[key] = ShardWriter(run.path / side, key[1], number, tokenizer=tokenizer.fingerprint)
            quality = 1.0 if row["quality"] is None else row["quality"]
            writers[key].add(tokens, num_bytes=len(row["text"].encode()), quality=quality)
        rows += len(batch)
        bar.advance(len(batch))
    tell_lost(file, counts)
    part: dict[str, Any] = {"rows": rows, "train": {}, "heldout": {}}
    for (side, name), writer in writers.items():
        part[side][name] = writer.close()
    atomic_write(record, json.dumps(part))
    return part


def _sum(parts) -> dict[str, dict[str, int]]:
    totals: dict[str, Counter] = {}
    for part in parts:
        for source, counts in part.items():
            totals.setdefault(source, Counter()).update(counts)
    return {source: dict(counts) for source, counts in sorted(totals.items())}
