"""Make the HTML report of a run folder, or of a folder of runs.

One self-contained page: what was done, the funnel, loss curves, samples, scores, and the command to redo each stage.
"""

from __future__ import annotations

from pathlib import Path

from herd.config import settings
from herd.errors import DataError
from herd.log import say
from herd.report import render
from herd.run import atomic_write


@settings
class ReportSettings:
    """Which folder to report on."""

    path: Path
    """A run folder, or a folder of run folders (runs/demo)."""

    out: Path | None = None
    """Where the page goes; `report.html` in that folder when not given."""


def run(settings: ReportSettings) -> Path:
    """Write the page and return its path."""
    if not settings.path.is_dir():
        raise DataError(f"{settings.path}: no such run folder")
    page = settings.out or settings.path / "report.html"
    atomic_write(page, render(settings.path))
    say(f"report: {page}")
    return page
