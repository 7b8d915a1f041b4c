"""Opening a guard of either kind: a small classifier, or a language model."""

from __future__ import annotations

from pathlib import Path

from herd.safety.guard import FILE, Guard, open_guard
from herd.safety.llama_guard import LlamaGuard, open_llama_guard

AnyGuard = Guard | LlamaGuard


def open_any_guard(folder: Path) -> AnyGuard:
    """The guard in a folder: what `herd guard train` made, or a checkpoint that speaks Llama Guard's prompt.

    Raises:
        CheckpointError: neither lies there.
    """
    is_model = any((folder / name).exists() for name in ("config.json", "checkpoint")) or folder.suffix == ".gguf"
    return open_llama_guard(folder) if is_model and not (folder / FILE).exists() else open_guard(folder)
