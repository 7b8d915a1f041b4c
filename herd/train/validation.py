"""Validation loss during training, for early stopping and the choice of the final weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from herd.config import settings
from herd.data.loader import Columns
from herd.data.shards import Documents
from herd.errors import CheckpointError
from herd.formats.safetensors import save_tensors
from herd.log import say
from herd.model.llama import Llama, Objective
from herd.parallel.launch import agreed, from_all
from herd.parallel.model import ParallelModel
from herd.run import atomic_write
from herd.train.checkpoint import is_first
from herd.train.metrics import Totals
from herd.types import Batch

HISTORY = "validation.jsonl"
_BEST = "state/best-{step:08.0f}.safetensors"  # deleted with the training state, once the checkpoint is written
_TIMES = 10  # measurements in a run, by default


@settings
class ValidationSettings:
    """Held-out rows, whose loss is measured during training."""

    share: float = 0.0
    """Share (0 to 1) of the rows to hold out, split by prompt; 0: none."""
    files: list[Path] = field(default_factory=list)
    """Files of validation rows, instead of a share."""
    every_steps: int = 0
    """Steps between measurements; 0: ten times over the run."""
    patience: int = 0
    """Early stopping: the number of consecutive measurements without a lower loss that ends the run; 0: never."""
    keep: Literal["best", "last"] = "best"
    """The weights of the final checkpoint: those with the lowest validation loss, or the last."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError("share must be at least 0 and less than 1")
        if self.share and self.files:
            raise ValueError("give share or files, not both")
        if min(self.every_steps, self.patience) < 0:
            raise ValueError("every_steps and patience must be 0 or more")

    def __bool__(self) -> bool:
        return bool(self.share or self.files)


@dataclass(frozen=True)
class KeptAside:
    """Held-out rows, as `PackedLoader` takes them."""

    sources: Mapping[str, Documents]
    columns: Columns | None = None


class Validation:
    """A hook that measures the validation loss, logs it to `validation.jsonl`, and keeps the best weights.

    `batches` are this process's micro-batches of the held-out rows.
    """

    def __init__(
        self,
        model: Llama | ParallelModel,
        objective: Objective,
        batches: Iterable[Batch],
        folder: Path,
        options: ValidationSettings,
    ):
        self.model, self.objective, self.batches = model, objective, list(batches)
        self.folder, self.options = folder, options

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to measure after a step: at regular distances, and at the end."""
        distance = self.options.every_steps or max(1, num_steps // _TIMES)
        return step % distance == 0 or step == num_steps

    def __call__(self, step: int) -> bool:
        """Measure after a step; returns True if the run is to end, by `patience`."""
        before = [row for row in agreed(lambda: history(self.folder)) if row["step"] < step]
        figures = self.measure()
        best = min((row["loss"] for row in before), default=float("inf"))
        better = figures["loss"] < best
        if is_first():
            rows = [*before, {"step": step} | {name: float(f"{value:.6g}") for name, value in figures.items()}]
            atomic_write(self.folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))
            if better and self.options.keep == "best":
                self._keep(step)
            say(f"\n  step {step}: validation loss {figures['loss']:.4f}{', the lowest so far' if better else ''}")
        since = 0 if better else 1 + sum(1 for row in before if row["step"] > _best_step(before))
        ends = bool(self.options.patience) and since >= self.options.patience
        if ends:
            say(f"  no lower validation loss in {since} measurements: the run ends early")
        return ends

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The mean loss over the held-out rows, and the objective's metrics, over all processes."""
        device, totals = next(self.model.parameters()).device, Totals()
        for batch in self.batches:
            totals.add(self.model.run(self.objective, batch.to(device)))
        names: dict[str, tuple[float, float]] = {}
        for sums in from_all(totals.sums):
            for name, (total, count) in sums.items():
                here = names.get(name, (0.0, 0.0))
                names[name] = (here[0] + total, here[1] + count)
        return {name: total / count for name, (total, count) in names.items() if count}

    def take_best(self) -> int | None:
        """Load the weights with the lowest loss into the model; returns their step, None if the last are kept."""
        if self.options.keep != "best":
            return None
        step = agreed(lambda: _best_step(history(self.folder)))
        file = self.folder / _BEST.format(step=step)
        if not agreed(file.exists):  # may be lost after a rollback
            say(f"  the best weights, after step {step:.0f}, no longer exist: the last ones are kept")
            return None
        try:
            weights = load_file(file)
            for name, parameter in self._learned().items():
                parameter.detach().copy_(weights[name])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{file}: damaged ({error}); start again in another folder") from None
        return int(step)

    def _keep(self, step: int) -> None:
        tensors = {name: parameter.detach().cpu().clone() for name, parameter in self._learned().items()}
        aside, file = self.folder / "state/best.part", self.folder / _BEST.format(step=step)
        save_tensors(tensors, aside)
        aside.replace(file)
        for old in file.parent.glob("best-*.safetensors"):
            if old != file:
                old.unlink()

    def _learned(self) -> dict[str, Any]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def history(folder: Path) -> list[dict[str, float]]:
    """The measurements of a run so far, in the order of the steps."""
    file = folder / HISTORY
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _best_step(rows: list[dict[str, float]]) -> float:
    return min(rows, key=lambda row: row["loss"])["step"] if rows else 0.0
