"""The checkpoints a run writes: snapshots while it runs, and the trained model at its end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch

from herd.config import settings
from herd.formats.checkpoint import save
from herd.formats.reward import REWARD_RECORD, reward_record
from herd.model.llama import Llama, LlamaForCausalLM, LlamaForSequenceClassification
from herd.parallel.model import ParallelModel
from herd.run import Run, atomic_write, read_metrics
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import discard_state, is_first, read_masters, steps_of
from herd.train.lora import has_adapters, save_adapters, save_merged
from herd.train.trackers import Tracker


@settings
class SavingSettings:
    """What a run saves while it runs."""

    may_change: ClassVar[tuple[str, ...]] = ("save_seconds", "trackers", "hang_seconds")

    save_seconds: float = 8.0
    """Seconds between saves of the training state, from which an interrupted run continues."""
    snapshots: int = 0
    """Number of checkpoints written to `checkpoints/`, evenly over the run, the last step included, for averaging."""
    snapshot_steps: int = 0
    """Steps between checkpoints written there, instead of or beside `snapshots`; 0: none."""
    keep_snapshots: int = 0
    """How many of the newest checkpoints in `checkpoints/` are kept; 0: all."""
    keep_every: int = 0
    """Also keep the checkpoints at multiples of this many steps; 0: none."""
    keep_best: bool = False
    """Also keep the checkpoint with the lowest training loss since the previous checkpoint."""
    log_steps: int = 1
    """Steps between lines of metrics.jsonl."""
    trackers: list[Tracker] = field(default_factory=list)
    """Experiment trackers that get the same metrics: tensorboard, wandb, mlflow (to be installed separately)."""
    hang_seconds: float = 0.0
    """Seconds without progress after which a process writes its stack traces and exits; 0: never."""

    def __post_init__(self) -> None:
        if self.save_seconds <= 0 or self.log_steps < 1:
            raise ValueError("save_seconds and log_steps must be positive")
        counts = ("snapshots", "snapshot_steps", "keep_snapshots", "keep_every", "hang_seconds")
        if min(getattr(self, name) for name in counts) < 0:
            raise ValueError(f"{', '.join(counts)} must be 0 or more")


def snapshots(
    model: Llama | ParallelModel, run: Run, saving: SavingSettings, tokenizer: Tokenizer | None = None
) -> Callable[[int], None]:
    """A function that writes model and tokenizer as `checkpoints/step-...`, and deletes old ones as `saving` says."""
    return partial(_snapshot, model, run.path, saving, tokenizer)


def finish(
    model: Llama | ParallelModel,
    run: Run,
    tokenizer: Tokenizer | None = None,
    figures: dict[str, Any] | None = None,
) -> None:
    """Write the trained model as `checkpoint/` (adapters merged, and separately as `adapter/`), complete the run's
    manifest, and only then delete the training state."""
    if not is_first():
        return
    whole = assembled(model, run.path)
    if has_adapters(whole):
        save_adapters(whole, run.path / "adapter", _base(run.path), tokenizer)
    (save_merged if has_adapters(whole) else save)(whole, run.path / "checkpoint", tokenizer)
    if isinstance(whole, LlamaForSequenceClassification) and tokenizer is not None:
        atomic_write(run.path / "checkpoint" / REWARD_RECORD, json.dumps(reward_record(tokenizer)))
    run.finish(figures=figures)
    discard_state(run.path / "state")


def _base(run: Path) -> str:
    """The checkpoint that a run started from, as the base model of its adapters; empty if there was none."""
    try:
        return str(Path(json.loads((run / "inputs.json").read_text(encoding="utf-8"))["checkpoint"]["path"]).resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def assembled(model: Llama | ParallelModel, folder: Path) -> Llama:
    """A model on a mesh as a whole model, from the newest state and the frozen weights (mapped from their files if the
    dtype is the same); any other model is returned as it is."""
    whole = _learned(model, folder)
    frozen = {name for name, parameter in whole.named_parameters() if parameter.is_meta}
    if frozen and isinstance(model, ParallelModel):
        _set(whole, {name: weight.to(model.dtype) for name, weight in model.base() if name in frozen})
    return whole


def _learned(model: Llama | ParallelModel, folder: Path) -> Llama:
    """A model on a mesh as a whole model, from the newest state; frozen weights stay on `meta`."""
    if not isinstance(model, ParallelModel):
        return model
    whole = model.whole()
    learned = {name: parameter for name, parameter in whole.named_parameters() if parameter.requires_grad}
    weights = {name: torch.empty_like(parameter, device="cpu") for name, parameter in learned.items()}
    read_masters(folder / "state", weights)
    _set(whole, weights)
    return whole.eval()


def _set(whole: Llama, weights: dict[str, torch.Tensor]) -> None:
    """Assign tensors as a model's parameters, without a copy."""
    whole.load_state_dict(weights, strict=False, assign=True)
    if isinstance(whole, LlamaForCausalLM):
        whole.tie_weights()


def _snapshot(
    model: Llama | ParallelModel, folder: Path, saving: SavingSettings, tokenizer: Tokenizer | None, step: int
) -> None:
    if not is_first():
        return
    whole = _learned(model, folder)
    target = folder / "checkpoints" / f"step-{step:08d}"
    if has_adapters(whole):
        save_adapters(whole, target, _base(folder), tokenizer)
    else:
        save(whole, target, tokenizer)
    kept = sorted(path for path in (folder / "checkpoints").glob("step-*"))
    if saving.keep_snapshots:
        best = _best(kept, read_metrics(folder)) if saving.keep_best else None
        for old in kept[: -saving.keep_snapshots]:
            if old != best and not (saving.keep_every and steps_of(old) % saving.keep_every == 0):
                shutil.rmtree(old)


def _best(snapshots: Sequence[Path], rows: Sequence[dict[str, Any]]) -> Path:
    """The snapshot with the lowest mean loss over the steps before it (the last tenth of the rows logged so far)."""

    def loss(path: Path) -> float:
        last = steps_of(path)
        before = [row["loss"] for row in rows if row["step"] <= last]
        return fmean(before[-max(1, len(rows) // 10) :]) if before else math.inf  # log_steps may be the larger

    return min(snapshots, key=loss)
