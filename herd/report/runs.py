"""The finished run folders that a report is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.run import read_manifest, read_metrics


@dataclass(frozen=True)
class StageRun:
    """A finished run folder: its name in the report, its path and its manifest."""

    name: str
    path: Path
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def figures(self) -> dict[str, Any]:
        figures = dict(self.manifest.get("figures", {}))
        if figures.get("mfu", 0) > 1:  # measured against a peak that was too low
            del figures["mfu"]
        return figures

    @property
    def seconds(self) -> float:
        return self.manifest.get("seconds", 0)

    def within(self, folder: Path) -> StageRun:
        """The same run with its folder's name in front."""
        name = folder.resolve().name
        return replace(self, name=name if self.path == folder else f"{name}/{self.name}")

    def json(self, name: str) -> Any:
        """A JSON file of the run, None if missing."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file of the run, empty if missing."""
        file = self.path / name
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def find_runs(path: Path) -> list[StageRun]:
    """The finished run folders at a path or one level below, in the order they finished."""
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())] if path.is_dir() else []
    runs = []
    for folder in folders:
        if (folder / "run.json").exists():
            manifest = read_manifest(folder)
            if manifest["state"] == "finished" and manifest["stage"] not in ("demo", "report", "story"):
                runs.append(StageRun(folder.name, folder, manifest))
    return sorted(runs, key=lambda run: (run.manifest["finished"], run.name))


def steps_of(run: StageRun) -> list[dict[str, Any]]:
    """The logged steps of a run that have a loss."""
    return [row for row in read_metrics(run.path) if row.get("loss") is not None and "step" in row]
