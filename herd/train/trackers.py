"""Optional experiment trackers beside metrics.jsonl, without a login: TensorBoard, W&B, MLflow."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from herd.errors import ConfigError
from herd.run import atomic_write

Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Trackers:
    """Sends each step's metrics to the chosen trackers, which write into the run folder.

    A run resumed after `step` finished steps stays one run in the trackers too.
    """

    def __init__(self, names: Sequence[Tracker], folder: Path, step: int = 0):
        self._open = [_KINDS[name](folder) for name in dict.fromkeys(names)]
        self.rewind(step)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Log the metrics of one finished step."""
        for tracker in self._open:
            tracker.log(step, figures)

    def rewind(self, step: int) -> None:
        """Announce that the steps after this one will be logged again."""
        for tracker in self._open:
            tracker.rewind(step)

    def close(self) -> None:
        """Flush and close all trackers."""
        for tracker in self._open:
            tracker.close()


class _Tracker(Protocol):
    def log(self, step: int, figures: dict[str, float]) -> None: ...

    def rewind(self, step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path):
        _needed("tensorboard", "tensorboard")
        self._make = _needed("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder = str(folder / "tensorboard")
        self._writer: Any = None

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        self.close()
        self._writer = self._make(self._folder, purge_step=step + 1)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class _Wandb:
    def __init__(self, folder: Path):
        os.environ.setdefault("WANDB_MODE", "offline")  # set it to `online` yourself if you want that
        wandb, identity = _needed("wandb", "wandb"), folder / "wandb-id.txt"  # folder names are not unique
        if not identity.exists():
            atomic_write(identity, uuid.uuid4().hex)
        settings = {"dir": str(folder), "name": folder.name, "project": "herd", "resume": "allow"}
        self._run = wandb.init(id=identity.read_text(), **settings)
        self._run.define_metric("*", step_metric="step")  # W&B's own step never goes back, and would drop data

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log({"step": step} | figures)

    def rewind(self, step: int) -> None:
        """Nothing to do: charts show the last value of a step."""

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Path):
        self._mlflow = _needed("mlflow", "mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self._mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        self._mlflow.set_experiment("herd")
        identity = folder / "mlflow-id.txt"
        known = {"run_id": identity.read_text()} if identity.exists() else {"run_name": folder.name}
        atomic_write(identity, self._mlflow.start_run(**known).info.run_id)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("@", " at "): value for name, value in figures.items()}, step=step)

    def rewind(self, step: int) -> None:
        """Nothing to do: MLflow keeps every value of a step, with its time."""

    def close(self) -> None:
        self._mlflow.end_run()


_KINDS: dict[str, Callable[[Path], _Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"saving.trackers: `{package}` is not installed; run `pip install {package}` or leave it out"
        ) from None
