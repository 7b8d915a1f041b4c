"""Decontaminate: find benchmark questions in a corpus, and mark the documents that contain them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from herd.config import settings
from herd.curate.filters.decontaminate import Benchmarks, Contamination, ContaminationReport, Hit
from herd.curate.judge.grades import read_documents
from herd.curate.parts import save_tables
from herd.curate.read.pages import find_files
from herd.errors import ConfigError, DataError
from herd.log import progress, say
from herd.parquet import tell_lost, whole_tables
from herd.run import Run, atomic_write, open_run


@settings
class DecontaminateSettings:
    """Look for benchmark questions in documents."""

    out: Path
    """Run folder to write."""
    documents: list[Path]
    """Curated documents (a run folder of `herd curate`, Parquet), or any pages that `herd curate` reads."""
    benchmarks: Contamination = field(default_factory=Contamination)
    write: bool = True
    """Whether to write a copy of the documents with `drop` set for contaminated ones; curated Parquet only."""

    def __post_init__(self):
        if not self.documents:
            raise ValueError("documents: give at least one folder or file")


def run(settings: DecontaminateSettings) -> Path:
    """Write `report.json`, `contaminated.jsonl` and, with `write`, `documents/*.parquet`.

    Raises:
        ConfigError: no benchmarks were given.
        DataError: documents or benchmarks cannot be read.
    """
    if not settings.benchmarks.benchmarks:
        raise ConfigError("benchmarks.benchmarks: give the files of questions to look for")
    inputs = {"documents": settings.documents, "benchmarks": settings.benchmarks.benchmarks}
    with open_run(settings.out, stage="decontaminate", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        benchmarks = Benchmarks(settings.benchmarks)
        counts = Counter(n for d in read_documents(settings.documents) for n in benchmarks.ngrams_in(d["text"]))
        if common := benchmarks.leave_out(counts):
            most = settings.benchmarks.most_documents
            say(f"  {common:,} n-grams occur in more than {most:,} documents: common phrases, not counted as leaks")
        report = ContaminationReport()
        contaminated: list[dict[str, Any]] = []
        for document in read_documents(settings.documents):
            hits = benchmarks.find(document["text"])
            report.add(document, hits)
            if hits:
                contaminated.append(
                    {"id": document["id"], "url": document["url"], "hits": [hit._asdict() for hit in hits[:20]]}
                )
        if not report.documents:
            raise DataError(f"{settings.documents[0]}: no document with text")
        result = report.as_dict(benchmarks)
        atomic_write(run.path / "contaminated.jsonl", "".join(json.dumps(row) + "\n" for row in contaminated))
        atomic_write(run.path / "report.json", json.dumps(result, indent=1))
        if settings.write:
            _write(run, settings, {row["id"]: Hit(**row["hits"][0]) for row in contaminated})
        for name, entry in result["benchmarks"].items():
            found_of = f"{entry['found']:,} of {entry['questions']:,} questions found"
            say(f"  {name}: {found_of}, in {entry['documents']:,} documents")
        run.finish({"documents": report.documents, "contaminated": report.contaminated})
    return run.path


def _write(run: Run, settings: DecontaminateSettings, hits_of: dict[str, Hit]) -> None:
    """Write the curated files with `drop` set in contaminated rows."""
    folders = [path / "documents" if (path / "documents").is_dir() else path for path in settings.documents]
    files = [Path(file) for file in find_files(folders)]
    if not all(file.suffix == ".parquet" and "drop" in pq.read_schema(file).names for file in files):
        say("  the documents are not curated Parquet: only the report is written")
        return
    (run.path / "documents").mkdir(exist_ok=True)
    with progress("write", total=len(files), unit="files") as bar:
        for number, file in enumerate(files):
            counts: Counter = Counter()
            marked = (_marked(table, settings, hits_of) for table in whole_tables(file, counts))
            save_tables(marked, pq.read_schema(file), run.path / "documents" / f"{number:06d}-{file.name}")
            tell_lost(file, counts)
            bar.advance()


def _marked(table: pa.Table, settings: DecontaminateSettings, hits_of: dict[str, Hit]) -> pa.Table:
    drop, detail = table["drop"].to_pylist(), table["drop_detail"].to_pylist()
    for row, id in enumerate(table["id"].to_pylist()):
        if drop[row] is None and id in hits_of and settings.benchmarks.action == "drop":
            hit = hits_of[id]
            drop[row], detail[row] = "contaminated", f"{hit.benchmark}, row {hit.row}: {hit.span[:300]}"
    for name, column in (("drop", drop), ("drop_detail", detail)):
        table = table.set_column(table.column_names.index(name), name, pa.array(column, pa.string()))
    return table
