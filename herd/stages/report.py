"""Make the HTML report of a run folder, of a folder of runs, or of several of them side by side.

    herd report runs/demo
    herd report runs/one runs/other out=compared.html

One self-contained page: what was made, five dialogues, what each step gained; then the figures, curves, samples and
scores of each stage, and the command to redo it. Runs of one stage stand side by side with the settings in which they
differ and their curves in one plot.
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

    path: list[Path]
    """A run folder, or a folder of run folders (runs/demo); several are compared."""

    out: Path | None = None
    """Where the page goes; `report.html` in that folder when not given. Of several folders it must be given."""

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: which run folder? Give one, or several to compare")
        if len(self.path) > 1 and self.out is None:
            raise ValueError("several folders: say where the page goes, out=compared.html")


def run(settings: ReportSettings) -> Path:
    """Write the page and return its path."""
    for path in settings.path:
        if not path.is_dir():
            raise DataError(f"{path}: no such run folder")
    page = settings.out or settings.path[0] / "report.html"
    atomic_write(page, render(*settings.path))
    say(f"report: {page}")
    return page
