"""Make labelled rows for a guard from lists of wishes and of the sentences they stand in.

`safety/requests.yaml` makes the shipped rows for general hazards, `safety/prompt-guard-rows.yaml` those of the prompt
guard. Copy one and write your own subject's wishes into it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from herd.config import settings
from herd.data.rows import write_rows
from herd.log import say
from herd.safety.rows import made_rows


@settings
class RowsSettings:
    """Which lists, and where the rows go."""

    lists: Path = Path("safety/requests.yaml")
    """YAML file of lists; shipped: safety/requests.yaml, safety/prompt-guard-rows.yaml."""
    out: Path
    """JSONL file to write."""
    seed: int = 0
    """Which sentences a wish is drawn for."""


def run(settings: RowsSettings) -> None:
    """Write the rows and say how many each label has."""
    rows = list(made_rows(settings.lists, seed=settings.seed))
    write_rows(settings.out, rows)
    counts = Counter(row["label"] for row in rows)
    say(f"{settings.out}: {len(rows):,} rows ({', '.join(f'{label} {count:,}' for label, count in counts.items())})")
