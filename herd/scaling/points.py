"""Finished pre-training runs as points of a fit, and the reasons why others are left out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from herd.errors import DataError
from herd.run import fingerprint, read_manifest, read_metrics

MAX_EPOCHS = 4.0
"""Epochs over a source after which repeated text is worth clearly less than new text (Muennighoff et al. 2023)."""
_DIVERGED = 1.05  # of the lowest mean loss of any twentieth of a run
_NATS = " right_nats_per_character"


@dataclass(frozen=True)
class Point:
    """One finished run."""

    name: str
    parameters: float
    tokens: float
    flops: float  # of the training, attention counted
    loss: float  # the metric of the fit; lower is better
    learning_rate: float = 0.0
    batch_tokens: float = 0.0
    sha256: str = ""  # of the run folder's outputs and figures
    answers: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Task -> nats per character of the right answer, accuracy."""
    shares: dict[str, float] = field(default_factory=dict)  # source -> share of the tokens
    heldout: dict[str, float] = field(default_factory=dict)  # source -> bits per byte


@dataclass(frozen=True)
class Collection:
    """The points of a fit, their common data, and which runs were left out and why."""

    points: list[Point]
    left_out: dict[str, str]
    made_of: dict[str, Any]  # tokenizer, row_tokens, sources and held-out text by content
    folders: list[Path]
    diverged: list[dict[str, Any]]  # of those left out: name, tokens, loss


def collect(
    paths: Sequence[Path], metric: str, *, max_epochs: float = MAX_EPOCHS, mixtures: bool = False
) -> Collection:
    """The pre-training runs at these paths or one level below; with `mixtures` their sources' shares may differ.

    Raises:
        DataError: no run can be used, or the usable ones differ in data or tokenizer.
    """
    points: list[Point] = []
    left_out: dict[str, str] = {}
    records: list[tuple[str, dict[str, Any]]] = []
    folders, diverged = [], []
    for folder in _folders(paths):
        manifest = read_manifest(folder)
        if manifest["stage"] != "pretrain":
            continue
        if why := _unfit(folder, manifest, metric, max_epochs):
            left_out[folder.name] = why
            figures = manifest.get("figures", {})
            if why.startswith("diverged") and math.isfinite(figures.get(metric, math.nan)):
                diverged.append({"name": folder.name, "tokens": figures["tokens"], "loss": figures[metric]})
            continue
        record = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
        records.append((folder.name, record))
        points.append(_point(folder, manifest, record, metric))
        folders.append(folder)
    if not points:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out.items())
        raise DataError(f"{', '.join(map(str, paths))}: no pre-training run that can be used{reasons}")
    made_of = [(name, _made_of(record, mixtures)) for name, record in records]
    for name, other in made_of[1:]:
        if different := [key for key, value in made_of[0][1].items() if other[key] != value]:
            raise DataError(
                f"{made_of[0][0]} and {name} differ in {' and '.join(different)}: their losses cannot be "
                "compared; fit them separately"
            )
    return Collection(points, left_out, made_of[0][1], folders, diverged)


def _folders(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; give run folders of `herd pretrain`, or a folder of them")
        below = sorted(one for one in path.iterdir() if one.is_dir())
        for folder in [path, *below]:
            if (folder / "run.json").exists() and folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _unfit(folder: Path, manifest: dict[str, Any], metric: str, max_epochs: float) -> str:
    """Why a run cannot be used in a fit; empty if it can."""
    figures = manifest.get("figures", {})
    if manifest["state"] != "finished":
        steps = read_metrics(folder)
        return f"it is not finished ({steps[-1]['step'] if steps else 0} steps)"
    if figures.get("left_out"):
        return str(figures["left_out"])
    if "flops" not in figures or not (folder / "sources.json").exists():
        return "it was made by an older version without records of FLOPs and sources; train it again"
    if "checkpoint" in manifest["inputs"]:
        return "it began from a checkpoint, so its loss does not follow from its own FLOPs"
    if not isinstance(figures.get(metric), int | float):
        return f"it has no figure `{metric}`"
    if not math.isfinite(figures[metric]):
        return f"diverged: its {metric} is {figures[metric]}"
    if why := _diverged([row["loss"] for row in read_metrics(folder) if "loss" in row]):
        return why
    sources = json.loads((folder / "sources.json").read_text(encoding="utf-8"))["sources"]
    name, most = max(((name, one["epochs"]) for name, one in sources.items()), key=lambda one: one[1])
    return f"it went through `{name}` {most:.1f} times, more than {max_epochs:g}" if most > max_epochs else ""


def _diverged(losses: Sequence[float]) -> str:
    size = max(1, len(losses) // 20)
    means = [fmean(losses[start : start + size]) for start in range(0, len(losses) - size + 1, size)]
    if not means or (math.isfinite(means[-1]) and means[-1] <= _DIVERGED * min(means)):
        return ""
    lowest = min((one for one in means if math.isfinite(one)), default=math.nan)
    return f"diverged: its training loss ended at {means[-1]:.3f}, after {lowest:.3f}"


def _point(folder: Path, manifest: dict[str, Any], record: dict[str, Any], metric: str) -> Point:
    figures, settings = manifest["figures"], manifest["settings"]
    return Point(
        name=folder.name,
        parameters=figures["parameters"],
        tokens=figures["tokens"],
        flops=figures["flops"],
        loss=figures[metric],
        learning_rate=settings["optimizer"]["learning_rate"],
        batch_tokens=settings["batch"]["tokens"],
        sha256=hashlib.sha256(f"{fingerprint(folder)} {json.dumps(figures)}".encode()).hexdigest(),
        answers=_answers(folder),
        shares={name: one["share"] for name, one in record["sources"].items()},
        heldout=record.get("heldout", {}).get("bits_per_byte", {}),
    )


def _answers(folder: Path) -> dict[str, tuple[float, float]]:
    """The last results of `watch.tasks` with choices."""
    file = folder / "evaluations.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    figures: dict[str, float] = json.loads(rows[-1])["figures"] if rows else {}
    answers = {}
    for name, nats in figures.items():
        if name.endswith(_NATS):
            task = name.removesuffix(_NATS)
            accuracy = next((v for k, v in figures.items() if k.startswith(f"{task} accuracy")), math.nan)
            answers[task] = (nats, accuracy)
    return answers


def _made_of(record: dict[str, Any], mixtures: bool) -> dict[str, Any]:
    """What must be the same in all runs of a fit; the keys are phrases for an error message."""
    sources = {name: (one["sha256"], None if mixtures else one["share"]) for name, one in record["sources"].items()}
    return {
        "their tokenizer": record["tokenizer"],
        "the tokens of their rows": record["row_tokens"],
        "the content or the shares of their sources": {name: list(one) for name, one in sources.items()},
        "their held-out text": record.get("heldout", {}).get("sha256", {}),
    }
