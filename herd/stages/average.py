"""Average checkpoints: those kept during annealing, or models trained on other data or settings."""

from __future__ import annotations

from pathlib import Path

from herd.config import settings
from herd.errors import CheckpointError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.log import say
from herd.run import open_run
from herd.tokenizer.io import save_tokenizer
from herd.train.average import average


@settings
class AverageSettings:
    """The Polyak average of checkpoints of one shape."""

    checkpoints: list[Path]
    """Checkpoints or run folders; a run folder that kept snapshots (`saving.snapshots`) gives the last of them."""
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
        found = [checkpoint for path in settings.checkpoints for checkpoint in snapshots(path, settings.last)]
        run.need(disk_bytes=sum(file.stat().st_size for file in {info.file for info in found[0].table.values()}))
        say(f"  the mean of {len(found)} checkpoints: {', '.join(checkpoint.place.name for checkpoint in found)}")
        average(found, run.path / "checkpoint", settings.weights)
        save_tokenizer(open_checkpoint(settings.checkpoints[0]).tokenizer, run.path / "checkpoint")
        run.finish({"checkpoints": len(found)})
    return run.path


def snapshots(path: Path, last: int) -> list[Checkpoint]:
    """The last snapshots that a run kept under `checkpoints/`, or the one checkpoint that the path means.

    Raises:
        CheckpointError: there is none.
    """
    kept = sorted((path / "checkpoints").glob("step-*"))
    if kept:
        return [open_checkpoint(folder) for folder in kept[-last:]]
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    return [open_checkpoint(path)]
