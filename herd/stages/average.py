"""Average checkpoints: those kept during annealing, or models trained on other data or settings."""

from __future__ import annotations

from pathlib import Path

from herd.config import settings
from herd.errors import CheckpointError
from herd.formats.checkpoint import find_checkpoint
from herd.log import say
from herd.run import open_run
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.average import average


@settings
class AverageSettings:
    """The Polyak average of checkpoints of one shape."""

    checkpoints: list[Path]
    """Checkpoints or run folders; a run folder that kept snapshots (`run.snapshots`) gives the last of them."""
    out: Path
    """Run folder to write."""
    last: int = 4
    """Snapshots taken from a run folder that kept some, counted from its end."""
    weights: list[float] | None = None
    """Weight of each checkpoint; equal when not given."""

    def __post_init__(self):
        if self.last < 1:
            raise ValueError("last must be at least 1")


def run(settings: AverageSettings) -> Path:
    """Write `checkpoint/`, the mean of the weights, with the first checkpoint's tokenizer."""
    with open_run(
        settings.out, stage="average", settings=settings, inputs={"checkpoints": settings.checkpoints}
    ) as run:
        if run.finished:
            return run.path
        folders = [folder for path in settings.checkpoints for folder in snapshots(path, settings.last)]
        size = sum(file.stat().st_size for file in folders[0].iterdir())
        run.need(disk_bytes=size)
        say(f"  the mean of {len(folders)} checkpoints: {', '.join(folder.name for folder in folders)}")
        average(folders, run.path / "checkpoint", settings.weights)
        tokenizer = Tokenizer.load(find_checkpoint(settings.checkpoints[0]))
        tokenizer.save(run.path / "checkpoint")
        run.finish({"checkpoints": len(folders)})
    return run.path


def snapshots(path: Path, last: int) -> list[Path]:
    """The last snapshots that a run kept under `checkpoints/`, or the one checkpoint that the path means.

    Raises:
        CheckpointError: there is none.
    """
    kept = sorted((path / "checkpoints").glob("step-*"))
    if kept:
        return kept[-last:]
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    return [find_checkpoint(path)]
