"""One HTML page for a run or several: what was made, what each step gained, the figures, the command to repeat it."""

from herd.report.page import render
from herd.report.runs import StageRun, find_runs

__all__ = ["StageRun", "find_runs", "render"]
