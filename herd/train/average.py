"""The Polyak average of checkpoints: the mean of their weights, often better than any single one.

Source: The Llama 3 Herd of Models, sections 3.4.3 (annealing) and 4.1.5 (reward models, SFT and DPO).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.folder import read_tensors
from herd.formats.safetensors import TensorInfo, save_tensors
from herd.run import atomic_folder


def average(checkpoints: Sequence[Path | Checkpoint], out: Path, weights: Sequence[float] | None = None) -> Path:
    """Write the (weighted) mean of checkpoints of the same shape as a checkpoint folder with the first one's files.

    Memory use: one weight file of the result, and one tensor of each input; sums are computed in float32.

    Raises:
        CheckpointError: a checkpoint is missing, damaged or not a Hugging Face folder, or shapes differ.
        ConfigError: no checkpoints, or the wrong number of weights.
    """
    opened = [open_checkpoint(path) for path in checkpoints]
    shares = _shares(len(opened), weights)
    folders, tensors = [checkpoint.place for checkpoint in opened], [checkpoint.table for checkpoint in opened]
    for folder, other in zip(folders[1:], tensors[1:]):
        _check_same(folders[0], tensors[0], folder, other)
    with atomic_folder(out) as aside:
        for file in sorted({info.file for info in tensors[0].values()}):
            names = [name for name, info in tensors[0].items() if info.file == file]
            mean = {name: _mean(name, tensors, shares) for name in names}
            save_tensors(mean, aside / file.name)
        _copy_companions(folders[0], aside)
    return out


def _mean(name: str, tensors: Sequence[dict[str, TensorInfo]], shares: Sequence[float]) -> Tensor:
    total: Tensor | None = None
    for infos, share in zip(tensors, shares):
        [(_, tensor)] = read_tensors({name: infos[name]})
        part = tensor.float().mul_(share) if tensor.dtype != torch.float32 else tensor * share
        total = part if total is None else total.add_(part)
    assert total is not None  # there is a checkpoint
    return total.to(tensors[0][name].dtype)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if not count:
        raise ConfigError("no checkpoints to average")
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(f"averaging {count} checkpoints needs {count} weights of 0 or more, not all 0; got {weights}")
    return [weight / sum(weights) for weight in weights]


def _check_same(first: Path, expected: dict[str, TensorInfo], folder: Path, found: dict[str, TensorInfo]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        here = tuple(infos[name].shape if name in infos else None for infos in (expected, found))
        if here[0] != here[1]:
            raise CheckpointError(
                f"{folder} cannot be averaged with {first}: `{name}` has shape {here[1]}, there {here[0]}"
            )
    ropes = [_rope(path) for path in (first, folder)]
    if ropes[0] != ropes[1]:
        raise CheckpointError(f"{folder} cannot be averaged with {first}: their RoPE settings differ ({ropes})")


def _rope(folder: Path) -> list[Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [config.get(name) for name in ("rope_theta", "rope_scaling", "rope_parameters")]


def _copy_companions(folder: Path, aside: Path) -> None:
    """Copy configuration and tokenizer; an index of weight files stays valid, since the files hold the same tensors."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith(".safetensors"):
            shutil.copyfile(file, aside / file.name)
