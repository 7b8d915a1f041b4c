"""The whole story on this machine: raw pages become a model you can talk to, in about ten minutes.

It runs `recipes/demo/story.yaml`, sized to the given time and to this machine's measured speed, on Python's own
documentation or on your pages. Finished steps are skipped and interrupted ones resumed, so the same command continues
wherever it was stopped.
"""

from __future__ import annotations

import os
import sys
from dataclasses import field, replace
from pathlib import Path
from typing import Any, ClassVar

from herd import config
from herd.config import settings
from herd.demo.pace import Pace
from herd.errors import CapacityError
from herd.log import duration, say
from herd.report import render
from herd.run import Run, atomic_write, fingerprint, open_run, read_manifest
from herd.stages import find
from herd.story import Act, StorySettings, go, plan

_DISK_BYTES = 700_000_000
_MEMORY_BYTES = 4_000_000_000
_SECONDS = 580.0
_LEAST_SECONDS = 120


@settings
class DemoSettings:
    """Raise a small Llama here."""

    may_change: ClassVar[tuple[str, ...]] = ("seconds",)  # what is done keeps its size

    path: Path = Path("runs/demo")
    """Folder for the whole story: one run folder for each step, and report.html."""
    pages: list[Path] = field(default_factory=list)
    """Your own pages (folders or files: HTML, WARC, JSONL, Parquet); this Python's documentation when not given."""
    seconds: float = _SECONDS
    """Seconds in all: steps that train or sample are sized to what this machine can do in their share."""
    pretrain_tokens: int | None = None
    """Tokens for pre-training, longer context and annealing together, with everything else as in the recipes, however
    long it takes: runs with the same number are identical."""

    def __post_init__(self):
        if self.seconds < _LEAST_SECONDS:
            raise ValueError(f"seconds must be at least {_LEAST_SECONDS}: the steps that cannot be reduced need them")
        if self.pretrain_tokens is not None and self.seconds != _SECONDS:
            raise ValueError("give either seconds or pretrain_tokens: fixed tokens determine the time")
        if self.pretrain_tokens is not None and self.pretrain_tokens < 10_000:
            raise ValueError("pretrain_tokens must be at least 10,000")


def run(settings: DemoSettings) -> Path:
    """Run the story, and print how to talk to the model."""
    inputs = {"pages": settings.pages} if settings.pages else {}
    with open_run(settings.path, stage="demo", settings=settings, inputs=inputs) as run:
        if run.finished:
            _check_steps(settings.path)
        else:
            _check_machine(run, settings)
            _raise(run, settings)
    _farewell(settings.path, _took(settings.path))
    return settings.path


def read_story(settings: DemoSettings) -> StorySettings:
    """The demo's story in its folder, on the pages that were given."""
    file = config.find_recipe(Path("recipes/demo/story.yaml"))
    story = config.load(StorySettings, file, values={"out": str(settings.path)}, where="herd demo")
    if not settings.pages:
        return story
    own = {"own_pages": [str(page) for page in settings.pages], "mixture": {}}
    return replace(story, values={**story.values, **own})


# ---- steps -----------------------------------------------------------------------------------------------------------


def _check_machine(run: Run, settings: DemoSettings) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < 0.9 * _MEMORY_BYTES:
        raise CapacityError(f"{memory / 1e9:.1f} GB of memory here; the demo needs {_MEMORY_BYTES / 1e9:.0f} GB")
    run.need(disk_bytes=_DISK_BYTES, seconds=None if settings.pretrain_tokens else settings.seconds)


def _check_steps(path: Path) -> None:
    """Check that the outputs of all finished steps are unchanged."""
    for manifest in sorted(path.glob("*/run.json")):
        fingerprint(manifest.parent)


def _raise(run: Run, settings: DemoSettings) -> None:
    story = read_story(settings)
    acts = plan(story, find)
    commands = {act.name: act.step.run for act in acts if act.step.run}
    pace = Pace(run.path, commands, story.seconds, settings.seconds, settings.pretrain_tokens)

    def sized(act: Act, given: Any) -> dict[str, Any]:
        return pace.settings_for(act.name, given) if act.name in commands else {}

    go(acts, find, sized)
    say("\nreport")
    atomic_write(run.path / "report.html", render(run.path))
    run.finish(_headlines(run.path), checkpoint=_chosen_model(run.path))


# ---- results ---------------------------------------------------------------------------------------------------------


def _headlines(path: Path) -> dict[str, float | str]:
    """The headline figures of the pre-training."""
    last = next(name for name in ("anneal", "longer-context", "pretrain") if (path / name / "run.json").exists())
    figures = read_manifest(path / last)["figures"]
    return {name: figures[name] for name in ("tokens", "loss", "heldout_bits_per_byte") if name in figures}


def _chosen_model(path: Path) -> str:
    """The checkpoint for chats: the best by the evaluation, or the base model without one."""
    if (path / "evaluate" / "run.json").exists():
        best = read_manifest(path / "evaluate")["figures"].get("best")
        if best:
            return f"{best}/checkpoint"
    return "average/checkpoint"


def _took(path: Path) -> float:
    """Seconds in all, including those before interruptions; after a kill only the steps have recorded theirs."""
    steps = sum(read_manifest(file.parent)["seconds"] for file in path.glob("*/run.json"))
    return float(max(read_manifest(path)["seconds"], steps))


def _farewell(path: Path, seconds: float) -> None:
    herd = sys.argv[0] if os.sep in sys.argv[0] and not sys.argv[0].endswith("__main__.py") else "herd"
    herd = os.path.relpath(herd) if os.sep in herd else herd
    say(f"\nDone in {duration(seconds)}. Talk to it:\n")
    say(f"  {herd} chat {path}       # here in the terminal")
    say(f"  {herd} serve {path}      # a chat page, and an OpenAI-compatible API")
    say(f'  {herd} search {path}/index/index "How do I ..."    # the pages themselves, with the place that says it')
    say(f"\nWhat happened, with every figure: {path / 'report.html'}")
