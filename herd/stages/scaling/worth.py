"""Worth: the gain from each new source on each evaluation, from annealing runs with and without it.

recipes/scaling/anneal.yaml makes the runs: a half-trained checkpoint, the rate decayed linearly to 0, 70 % default mix.
"""

from __future__ import annotations

import json
from pathlib import Path

from herd.config import settings
from herd.log import say
from herd.run import atomic_write, open_run
from herd.scaling.worth import read_annealed, with_verdicts, worth


@settings
class WorthSettings:
    """Annealing runs on the default mix, and with 30 % of a new source."""

    default: list[Path]
    """Run folders of `herd pretrain` annealed on the default mix, one for each seed."""
    runs: list[Path]
    """Run folders annealed with a new source, for each source and seed."""
    out: Path
    """Run folder to write."""


def run(settings: WorthSettings) -> Path:
    """Write `worth.json`, and print a line for each source and evaluation."""
    inputs = {"default": settings.default, "runs": settings.runs}
    with open_run(settings.out, stage="scaling worth", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        rows = with_verdicts(
            worth([read_annealed(one) for one in settings.default], [read_annealed(one) for one in settings.runs])
        )
        atomic_write(run.path / "worth.json", json.dumps({"rows": rows}, indent=1))
        for row in rows:
            say(
                f"  {row['source']}, {row['evaluation']}: {row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}, "
                f"{row['seeds']} seeds; {row['without']:.4f} without): {row['says']}"
            )
        count = {says: sum(row["says"] == says for row in rows) for says in ("helps", "harms")}
        run.finish({"sources": len({row["source"] for row in rows}), **count})
    return run.path
