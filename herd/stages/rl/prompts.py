"""Make prompts whose answers code can judge: instructions with checks of form, or small sums."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from herd.config import settings
from herd.data.rows import write_rows
from herd.data.split import is_held_out
from herd.errors import ConfigError
from herd.log import say
from herd.post.instructions import KINDS, instruction_rows, sum_rows
from herd.post.prompts import apart_from
from herd.run import open_run


@settings
class PromptSettings:
    """Make prompts for verifiable rewards."""

    out: Path
    """Run folder to write."""
    kind: Literal["instructions", "sums"] = "instructions"
    """Instructions with checks of form (IFEval's kinds), or sums with their answer."""
    count: int = 800
    """Prompts to make, the held-out ones among them."""
    held_out: float = 0.2
    """Share (0 to 1) of the topics or sums that goes to held_out.jsonl instead of prompts.jsonl."""
    new_wordings: bool = False
    """Word held-out instructions as no other is: other tasks, and other words for every check."""
    most: int = 2
    """Checks in one instruction, at most."""
    checks: tuple[str, ...] = KINDS
    """The checks that instructions are made for."""
    largest: int = 20
    """Largest number in a sum."""
    system: str = ""
    """System message of every prompt, such as `Answer with the number.`"""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks (JSONL, JSON, CSV, Parquet): a prompt that stands in one of them is left out."""
    seed: int = 0
    """Seed of the drawing."""

    def __post_init__(self):
        if self.count < 1 or self.most < 1 or self.largest < 1:
            raise ValueError("count, most and largest must be at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError("held_out must be at least 0 and below 1")
        if self.new_wordings and (self.kind == "sums" or not self.held_out):
            raise ValueError("new_wordings is for instructions with a held-out share")


def run(settings: PromptSettings) -> Path:
    """Write `prompts.jsonl` and `held_out.jsonl`, which share no topic and no sum."""
    with open_run(
        settings.out, stage="rl prompts", settings=settings, inputs={"benchmarks": [*settings.benchmarks]}
    ) as run:
        if run.finished:
            return run.path
        rows = _rows(settings)
        kept = [_under(settings.system, row) for row in apart_from(rows, settings.benchmarks)]
        held_out = [row for row in kept if _is_aside(row, settings)]
        trained = [row for row in kept if not _is_aside(row, settings)]
        if not trained or (settings.held_out and not held_out):
            raise ConfigError(f"{len(trained):,} prompts to train on and {len(held_out):,} held out; ask for more")
        write_rows(run.path / "prompts.jsonl", trained)
        write_rows(run.path / "held_out.jsonl", held_out)
        say(f"  {len(trained):,} prompts, {len(held_out):,} held out, {len(rows) - len(kept):,} left out")
        run.finish({"prompts": len(trained), "held_out": len(held_out), "left_out": len(rows) - len(kept)})
    return run.path


def _rows(settings: PromptSettings) -> list[dict[str, Any]]:
    if settings.kind == "sums":
        return sum_rows(settings.count, seed=settings.seed, largest=settings.largest)
    make = partial(instruction_rows, settings.count, seed=settings.seed, most=settings.most, kinds=settings.checks)
    if not settings.new_wordings:
        return make()
    known, unseen = make(wordings="known"), make(wordings="unseen")
    return [
        *(row for row in known if not _is_aside(row, settings)),
        *(row for row in unseen if _is_aside(row, settings)),
    ]


def _is_aside(row: dict[str, Any], settings: PromptSettings) -> bool:
    return is_held_out(f"rl {row['group']}", settings.held_out)


def _under(system: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row with a system message before its prompt, where there is one."""
    if not system:
        return row
    asked = [{"role": "system", "content": system}, {"role": "user", "content": row["prompt"]}]
    return {"messages": asked} | {name: value for name, value in row.items() if name != "prompt"}
