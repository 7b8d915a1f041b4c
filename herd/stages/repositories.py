"""Repositories: the files of git repositories as pages for `herd curate`, with their licences."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.curate.read.repository import open_repository, rows
from herd.errors import DataError
from herd.log import progress, say
from herd.run import atomic_write, open_run


@settings
class RepositoriesSettings:
    """Gather the files of git repositories at their current commits."""

    repositories: list[Path]
    """Folders of checked-out or bare git repositories."""
    out: Path
    """Run folder to write."""
    licences: list[str] | None = None
    """Allowed licences (SPDX identifiers); repositories with others, or none, are left out. Default: all."""
    max_file_bytes: int = 1_000_000
    """Larger files are left out, in bytes."""

    def __post_init__(self):
        if not self.repositories or self.max_file_bytes < 1:
            raise ValueError("repositories: give at least one folder; max_file_bytes must be at least 1")


def run(settings: RepositoriesSettings) -> Path:
    """Write `pages.jsonl.gz`, which `herd curate pages=[...]` takes, and `repositories.json`.

    Raises:
        DataError: a folder is not a git repository, or no file was taken.
    """
    repositories = [open_repository(path) for path in settings.repositories]
    commits = [f"{repository.name}@{repository.commit}" for repository in repositories]
    inputs = {"repositories": commits}
    with open_run(settings.out, stage="repositories", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        buffer, records = io.BytesIO(), list[dict[str, Any]]()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file,
            progress("repositories", total=len(repositories), unit="repositories") as bar,
        ):
            for repository in repositories:
                counts: Counter = Counter()
                taken = settings.licences is None or repository.licence in settings.licences
                for row in rows(repository, counts, settings.max_file_bytes) if taken else ():
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                    counts["taken"] += 1
                facts = {"name": repository.name, "commit": repository.commit, "licence": repository.licence}
                records.append(facts | {"date": repository.date, "licence_allowed": taken, **counts})
                bar.advance()
        num_files = sum(row.get("taken", 0) for row in records)
        if not num_files:
            raise DataError(f"{settings.repositories[0]}: no file was taken; licences found: {_licences(records)}")
        atomic_write(run.path / "pages.jsonl.gz", buffer.getvalue())
        atomic_write(run.path / "repositories.json", json.dumps(records, indent=1))
        say(f"  {num_files:,} files of {len(repositories):,} repositories; licences: {_licences(records)}")
        run.finish({"repositories": len(repositories), "files": num_files})
    return run.path


def _licences(records: list[dict]) -> str:
    counts = Counter(row["licence"] or "none" for row in records)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())
