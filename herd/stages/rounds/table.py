"""Table: what each round of a story changed, and which model is the best."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.errors import DataError
from herd.log import say
from herd.run import atomic_write, open_run, read_manifest


@settings
class TableSettings:
    """One line for each round: gain with its interval, questions fixed, still wrong and newly broken."""

    out: Path
    """Run folder to write."""
    story: Path
    """Folder of the story whose rounds are told."""
    rounds: str = "turn"
    """Name of the step that has the rounds."""
    evaluation: str = "evaluate"
    """Name of the step in a round that compares the model before the round (first) with the one after it (last)."""
    start: Path
    """The model before the first round."""


def run(settings: TableSettings) -> Path:
    """Write `rounds.json` and `rounds.md`, and say which checkpoint is the best."""
    evaluations = _evaluations(settings)
    with open_run(
        settings.out, stage="rounds table", settings=settings, inputs={"evaluations": [one for _, one in evaluations]}
    ) as run:
        if run.finished:
            return run.path
        best, rows = str(settings.start), list[dict[str, Any]]()
        for number, folder in evaluations:
            figures = read_manifest(folder)["figures"]
            models = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
            last = [entry["path"] for name, entry in models.items() if name.startswith("model ")][-1]
            row = {"round": number} | {name: figures[name] for name in _COLUMNS}
            row["says"] = _says(row)
            row["kept"] = row["gain"] > 0
            best = last if row["kept"] else best
            rows.append(row | {"best": best})
        text = _markdown(rows)
        atomic_write(run.path / "rounds.json", json.dumps(rows, indent=1))
        atomic_write(run.path / "rounds.md", text)
        say("\n".join(f"  {line}" for line in text.splitlines()))
        say(f"  the best: {best}")
        run.finish({"rounds": len(rows), "kept": sum(row["kept"] for row in rows)}, checkpoint=best)
    return run.path


_COLUMNS = ("gain", "gain_low", "gain_high", "still_right", "fixed", "still_wrong", "newly_broken")


def _evaluations(settings: TableSettings) -> list[tuple[int, Path]]:
    name = re.compile(rf"{re.escape(settings.rounds)}-(\d+)-{re.escape(settings.evaluation)}")
    folders = settings.story.iterdir() if settings.story.is_dir() else ()
    matches = [(int(match[1]), one) for one in folders if (match := name.fullmatch(one.name))]
    done = sorted(one for one in matches if (one[1] / "run.json").exists())
    if not done:
        raise DataError(
            f"{settings.story}: no finished {settings.rounds}-N-{settings.evaluation} in it; name the story's steps "
            "with rounds= and evaluation="
        )
    return done


def _says(row: dict[str, Any]) -> str:
    if row["gain_low"] > 0:
        return "better"
    return "worse" if row["gain_high"] < 0 else "no difference shown"


def _markdown(rows: list[dict[str, Any]]) -> str:
    heads = ("round", "gain (95 %)", "", "still right", "fixed", "still wrong", "newly broken", "kept")
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        gain = f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
        counts = [row[name] for name in ("still_right", "fixed", "still_wrong", "newly_broken")]
        lines.append((row["round"], gain, row["says"], *counts, "yes" if row["kept"] else "no"))
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
