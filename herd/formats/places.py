"""Finding the checkpoint that a path means, and its format, without reading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from herd.errors import CheckpointError
from herd.formats.gguf import first_part, is_gguf

Format = Literal["huggingface", "meta", "gguf"]
"""A Hugging Face folder, a Meta folder, a llama.cpp file."""

CONFIG = "config.json"
PARAMS = "params.json"
SUFFIX = ".gguf"


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint that a path means: a GGUF file, a folder, its `checkpoint/`, or what its run.json points to.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected a checkpoint folder, a run folder or a GGUF file.")
    if path.is_file():
        return _of_file(path)
    candidates = [path, path / "checkpoint", *_pointed_to(path)]
    for candidate in candidates:
        if (candidate / CONFIG).is_file() or _is_meta(candidate):
            return candidate
    files = gguf_files(path)
    files = [file for file in files if first_part(file) == file] or files  # the others follow from the first
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{path} holds {len(files)} GGUF files; name one of them, such as {files[0]}.")
    raise CheckpointError(
        f"{path} holds no checkpoint: expected config.json in it, in {path / 'checkpoint'}, a finished run whose "
        f"run.json names one, Meta's params.json and consolidated.*.pth, or one {SUFFIX} file."
    )


def format_of(place: Path) -> Format:
    """The format of a checkpoint found by `find_checkpoint`."""
    if place.is_file():
        return "gguf"
    return "huggingface" if (place / CONFIG).is_file() else "meta"


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files in a folder, by name."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def _of_file(path: Path) -> Path:
    if path.suffix == SUFFIX or is_gguf(path):
        return first_part(path)
    if path.name in (CONFIG, PARAMS) or path.suffix in (".safetensors", ".pth", ".bin"):
        return find_checkpoint(path.parent)
    raise CheckpointError(f"{path} is not a checkpoint: expected a folder or a GGUF file.")


def _is_meta(folder: Path) -> bool:
    return (folder / PARAMS).is_file() and any(folder.glob("consolidated.*.pth"))


def _pointed_to(path: Path) -> list[Path]:
    try:
        target = json.loads((path / "run.json").read_text(encoding="utf-8")).get("checkpoint")
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [path / target] if isinstance(target, str) else []
