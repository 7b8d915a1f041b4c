"""One HTML page per run, or for several: what was made, what each step gained, the figures, the command to redo it."""

from herd.report.page import render
from herd.report.runs import StageRun, find_runs

__all__ = ["StageRun", "find_runs", "render"]
