"""Prompts to put to a model, from anybody's rows, in any shape that docs/tuning.md lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from herd.data.rows import read_rows
from herd.errors import DataError
from herd.evals.answers import prompt_of, question_text
from herd.evals.rows import rows_of
from herd.log import say


def read_prompts(path: Path, max_prompts: int) -> list[dict[str, Any]]:
    """At most `max_prompts` rows of JSONL or Parquet, spread evenly over the file or folder.

    An answer at the end is not shown to the model; it is the reference, where there is one.

    Raises:
        DataError: there is no row, or one that holds no prompt.
    """
    rows = []
    for place, row in read_rows(path):
        try:
            prompt_of(row)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: no prompts in it")
    return spread(rows, max_prompts)


def spread(rows: Sequence[dict], count: int) -> list[dict]:
    """`count` rows (or all) spread evenly over the list."""
    step = max(len(rows) / count, 1.0)
    return [rows[int(place * step)] for place in range(min(count, len(rows)))]


def part_of(rows: Sequence[dict], begin: float, end: float) -> list[dict]:
    """The rows whose prompt's hash falls between two shares (0 to 1): disjoint parts never share a prompt."""
    return [row for row in rows if begin <= share_of(question_text(row)) < end]


def share_of(text: str) -> float:
    """A number from 0 to 1 that a text always has."""
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest()) / 2**48


def origin_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of where it belongs: those of `group`, `name` and `kind` that it has."""
    return {key: row[key] for key in ("group", "name", "kind") if key in row}


def apart_from(rows: Sequence[dict], benchmarks: Sequence[Path]) -> list[dict]:
    """The rows whose prompt stands in none of these benchmarks' files; how many do is said.

    Compared with every text in their rows, case and spaces aside: a benchmark only measures.

    Raises:
        DataError: a file cannot be read.
    """
    known = {_plain(text) for path in benchmarks for row in rows_of(path) for text in _texts(row)}
    kept = [row for row in rows if _plain(question_text(row)) not in known]
    if benchmarks:
        names = ", ".join(path.name for path in benchmarks)
        say(f"  {len(rows) - len(kept):,} of {len(rows):,} prompts stand in {names} and are left out")
    return kept


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
