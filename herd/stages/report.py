"""Make the HTML report of a run folder, of a folder of runs, or of several of them side by side.

    herd report runs/demo
    herd report runs/one runs/other out=compared.html

One self-contained page: what was made, five dialogues, what each step gained; then the figures, curves, samples and
scores of each stage, and the command to repeat it. Runs of the same stage are compared: their differing settings, their
figures, and their curves in one plot.
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
    """File to write; default: `report.html` in the folder. Required for several folders."""

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: give a run folder, or several to compare")
        if len(self.path) > 1 and self.out is None:
            raise ValueError("several folders need a file to write: out=compared.html")


def run(settings: ReportSettings) -> Path:
    """Write the page and return its path."""
    for path in settings.path:
        if not path.is_dir():
            raise DataError(f"{path}: no such run folder")
    page = settings.out or settings.path[0] / "report.html"
    atomic_write(page, render(*settings.path))
    say(f"report: {page}")
    return page
