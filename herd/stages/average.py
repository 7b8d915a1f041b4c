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
    """The weighted mean of checkpoints of one shape (Polyak averaging)."""

    checkpoints: list[Path]
    """Checkpoints or run folders; of a run folder with snapshots (`saving.snapshots`) the last ones are taken."""
    out: Path
    """Run folder to write."""
    last: int = 4
    """Number of last snapshots taken from each run folder that has them."""
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
        checkpoints = [checkpoint for path in settings.checkpoints for checkpoint in snapshots(path, settings.last)]
        run.need(disk_bytes=sum(file.stat().st_size for file in {info.file for info in checkpoints[0].table.values()}))
        say(f"  the mean of {len(checkpoints)} checkpoints: {', '.join(one.place.name for one in checkpoints)}")
        average(checkpoints, run.path / "checkpoint", settings.weights)
        save_tokenizer(open_checkpoint(settings.checkpoints[0]).tokenizer, run.path / "checkpoint")
        run.finish({"checkpoints": len(checkpoints)})
    return run.path


def snapshots(path: Path, last: int) -> list[Checkpoint]:
    """The last snapshots of a run folder (`checkpoints/`), or the single checkpoint at the path.

    Raises:
        CheckpointError: the path does not exist.
    """
    kept = sorted((path / "checkpoints").glob("step-*"))
    if kept:
        return [open_checkpoint(folder) for folder in kept[-last:]]
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    return [open_checkpoint(path)]
