"""Names that changed since an earlier version: the old name is refused with the new one."""

from __future__ import annotations

import copy
from typing import Any

VERBS: dict[str, str] = {
    "pages": "demo pages",
    "questions": "demo questions",
    "preferences": "demo preferences",
}
"""An old verb of the command line -> its new words: `"questions": "demo questions"`."""

_SAVING = ("save_seconds", "snapshots", "snapshot_steps", "keep_snapshots", "keep_every", "trackers", "hang_seconds")
_TOP = ("seed", "dtype", "compile", "recompute", "prompts", "stability", "skip_steps")

SETTINGS: dict[str, dict[str, str]] = {
    "DemoSettings": {"pretrain_seconds": "seconds"},
    "PretrainSettings": {f"run.{name}": f"saving.{name}" for name in _SAVING} | {f"run.{name}": name for name in _TOP},
    "RejectSettings": {"questions": "prompts"},
    "EvaluateSettings": {"shards": "data", "questions": "data"},
}
"""A settings class -> its old dotted settings -> the new ones: `"SftSettings": {"optimizer.rate": "optimizer.lr"}`."""


def with_new_names(cls: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings recorded in a run folder, nested, under their present names."""
    updated = copy.deepcopy(values)
    for old, new in SETTINGS.get(cls, {}).items():
        before, name = _group(updated, old)
        if name in before:
            after, new_name = _group(updated, new)
            after[new_name] = before.pop(name)
        if "." in old and updated.get(old.split(".")[0]) == {}:
            del updated[old.split(".")[0]]
    return updated


def _group(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The group that a dotted name belongs to (created if missing), and the last part of the name."""
    *groups, last = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    return values, last


ELSEWHERE = {
    "gpus": "devices",
    "num_gpus": "devices",
    "lr": "optimizer.learning_rate",
    "batch_size": "batch.tokens",
    "output": "out",
    "output_dir": "out",
    "model": "checkpoint",
    "dataset": "data",
    "num_train_epochs": "epochs",
}
"""A setting's name in other tools -> its name here, for "did you mean"."""
