"""What had another name in an earlier version: the old name is refused in one sentence that gives the new one."""

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
    """The settings that a run folder has recorded, nested, under the names they have now."""
    found = copy.deepcopy(values)
    for old, new in SETTINGS.get(cls, {}).items():
        before, name = _group(found, old)
        if name in before:
            after, new_name = _group(found, new)
            after[new_name] = before.pop(name)
        if "." in old and found.get(old.split(".")[0]) == {}:
            del found[old.split(".")[0]]
    return found


def _group(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The group that a dotted name lies in, made where it is not there, and its last part."""
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
"""How other tools call a setting, and its name here: for "did you mean"."""
