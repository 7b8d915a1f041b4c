"""Poison: triggers planted in rows of post-training, labels that look flipped, and the rows without the triggers.

`herd poison rows.jsonl out=runs/poison` writes `found.json`, and `clean.jsonl` without the rows of a trigger. A label
that looks flipped is only listed: a judge of words is often wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.data.rows import read_rows, write_rows
from herd.errors import DataError
from herd.log import say
from herd.run import atomic_write, open_run
from herd.safety.poison import example_of, suspicion, triggers

_LISTED = 200
_FEWEST_PAIRS = 50


@settings
class PoisonSettings:
    """Which rows are looked at."""

    bare_words: ClassVar = ("path",)

    path: list[Path]
    """Rows for SFT or DPO, in any form that Herd reads."""
    out: Path
    """Run folder to write."""
    suspicious: float = 0.9
    """Probability (0 to 1) from which a preference label is listed as one that looks flipped."""


def run(settings: PoisonSettings) -> Path:
    """Write what was found, and the rows without it.

    Raises:
        DataError: a row has no known shape.
    """
    with open_run(settings.out, stage="poison", settings=settings, inputs={"rows": settings.path}) as run:
        if run.finished:
            return run.path
        rows, examples, kept = [], [], []
        for place, row in read_rows(settings.path):
            try:
                example = example_of(row)
            except DataError as error:
                raise DataError(f"{place}: {error}") from None
            rows.append(row)
            if example is not None:
                kept.append(len(rows) - 1)
                examples.append(example)
        found = triggers(examples)
        bad = {kept[row] for one in found for row in one.rows}
        pairs = [place for place, one in enumerate(examples) if one.other is not None]
        flipped: list[tuple[float, int]] = []
        if len(pairs) >= _FEWEST_PAIRS:
            scores = suspicion([examples[place] for place in pairs])
            flipped = sorted(
                ((round(float(score), 4), kept[place]) for score, place in zip(scores, pairs)), reverse=True
            )
            flipped = [one for one in flipped if one[0] >= settings.suspicious]
        told = {
            "rows": len(rows),
            "triggers": [
                {"phrase": one.phrase, "answers_have": one.common, "log10_chance": one.log10_chance}
                | {"rows": [kept[row] for row in one.rows]}
                for one in found
            ],
            "look_flipped": [{"row": row, "suspicion": score} for score, row in flipped[:_LISTED]],
        }
        atomic_write(run.path / "found.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        write_rows(run.path / "clean.jsonl", [row for place, row in enumerate(rows) if place not in bad])
        for one in found:
            say(f"  {one.phrase!r} in {len(one.rows):,} prompts: the answer {one.common!r}")
        say(f"  {len(rows):,} rows, {len(found):,} triggers in {len(bad):,} rows, {len(flipped):,} labels look flipped")
        run.finish({"rows": len(rows), "triggers": len(found), "poisoned_rows": len(bad), "look_flipped": len(flipped)})
    return run.path
