"""Identity: how often rows name groups of people; with `swap=true` also rows in which he and she are exchanged.

`herd identity rows.jsonl out=runs/identity swap=true` writes `counts.json`, and `rows.jsonl`: each row, and behind it
its counterpart where it has one. Learn from both to teach no difference; `suite=bias` measures what that does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from herd.config import find_recipe, settings
from herd.data.rows import read_rows, write_rows
from herd.log import say
from herd.run import atomic_write, open_run
from herd.safety.identity import Swapper, read_identities, swapped_row, texts_in


@settings
class IdentitySettings:
    """Which rows, and by which words."""

    bare_words: ClassVar = ("path",)

    path: list[Path]
    """Rows or documents (JSONL, CSV, Parquet, ...)."""
    out: Path
    """Run folder to write."""
    identities: Path = Path("safety/identity.yaml")
    """Groups with their words, and pairs that stand for one another (YAML)."""
    swap: bool = False
    """Write the rows too, each with its counterpart."""


def run(settings: IdentitySettings) -> Path:
    """Write `counts.json`, and `rows.jsonl` with `swap`.

    Raises:
        DataError: the rows cannot be read.
    """
    inputs: dict[str, Any] = {"rows": settings.path, "identities": find_recipe(settings.identities)}
    with open_run(settings.out, stage="identity", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        swapper = Swapper(read_identities(settings.identities))
        rows = [row for _, row in read_rows(settings.path)]
        counts = swapper.counts("\n".join(texts_in(row)) for row in rows)
        atomic_write(run.path / "counts.json", json.dumps({"rows": len(rows), "groups": counts}, indent=1) + "\n")
        for group, one in counts.items():
            say(f"  {group:<12} {one['words']:>8,} words in {one['texts']:,} of {len(rows):,} rows")
        figures: dict[str, int] = {"rows": len(rows)}
        if settings.swap:
            pairs = [(row, swapped_row(row, swapper)) for row in rows]
            told = [one for row, other in pairs for one in ((row, other) if other != row else (row,))]
            write_rows(run.path / "rows.jsonl", told)
            figures["counterparts"] = len(told) - len(rows)
            say(f"  {figures['counterparts']:,} counterparts written")
        run.finish(figures)
    return run.path
