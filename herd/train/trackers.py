"""Experiment trackers beside metrics.jsonl, each one an option and none ever a login: TensorBoard, W&B, MLflow."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from herd.errors import ConfigError

Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Trackers:
    """Sends each step's figures to the trackers that were asked for; they write into the run folder."""

    def __init__(self, names: Sequence[Tracker], folder: Path):
        self._open = [_KINDS[name](folder) for name in dict.fromkeys(names)]

    def log(self, step: int, figures: dict[str, float]) -> None:
        """The figures of one finished step."""
        for tracker in self._open:
            tracker.log(step, figures)

    def close(self) -> None:
        """Write out what is still held back."""
        for tracker in self._open:
            tracker.close()


class _TensorBoard:
    def __init__(self, folder: Path):
        _needed("tensorboard", "tensorboard")
        self._writer = _needed("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path):
        os.environ.setdefault("WANDB_MODE", "offline")  # whoever wants it online says so
        settings = {"dir": str(folder), "name": folder.name, "project": "herd", "id": folder.name, "resume": "allow"}
        self._run = _needed("wandb", "wandb").init(**settings)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Path):
        self._mlflow = _needed("mlflow", "mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self._mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        self._mlflow.set_experiment("herd")
        self._mlflow.start_run(run_name=folder.name)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("@", " at "): value for name, value in figures.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"trackers names `{package}`, which is not installed; run `pip install {package}` or leave it out"
        ) from None
