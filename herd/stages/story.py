"""Run a story: a file of steps that build on one another, with rounds, grids and gates.

Each step is a command with its own run folder inside the story's; all settings are checked before the first step. The
same command resumes an interrupted story and skips what is done. docs/stories.md describes the notation.
"""

from __future__ import annotations

from pathlib import Path

from herd import config
from herd.log import say
from herd.report import find_runs, render
from herd.run import atomic_write, open_run
from herd.stages import find
from herd.story import StorySettings, described, go, plan


def run(settings: StorySettings) -> Path:
    """Check and run all steps, and write `report.html` over them."""
    acts = plan(settings, find)
    if settings.dry_run:
        print("\n".join(described(acts, settings.seconds)))
        return settings.out
    with open_run(settings.out, stage="story", settings=settings, inputs={}) as run:
        run.reopen()  # a finished story may have new steps
        atomic_write(run.path / "settings.yaml", config.dump(settings))
        try:
            ended = go(acts, find)
        finally:
            if find_runs(run.path):
                atomic_write(run.path / "report.html", render(run.path))
        run.finish({"steps": len(find_runs(run.path)), "ended": ended or "with the last step"})
    say(f"\nWhat happened, with every figure: {run.path / 'report.html'}")
    return run.path
