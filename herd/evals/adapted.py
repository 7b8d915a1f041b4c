"""A LoRA adapter as a model of its own: its base, with the adapter's change added to the weights as they are opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.infer.adapters import merge
from herd.model.config import GENERATION
from herd.model.llama import Attend, Llama
from herd.tokenizer.io import find_vocabulary, load_tokenizer
from herd.tokenizer.tokenizer import Tokenizer

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapted(Checkpoint):
    """The base, opened; vocabulary, template and ends of answers are the adapter's own where its folder has them."""

    adapter: Path
    """PEFT's folder."""

    def __str__(self) -> str:
        return str(self.adapter)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if find_vocabulary(self.adapter) is None:
            return super().tokenizer
        found = load_tokenizer(self.adapter)
        if found.vocab_size > self.config.vocab_size:
            raise CheckpointError(
                f"{self.adapter}: its tokenizer has {found.vocab_size:,} ids, its base {self.place} only "
                f"{self.config.vocab_size:,}: they do not belong together"
            )
        return found

    @cached_property
    def generation(self) -> dict[str, Any]:
        try:
            values = json.loads((self.adapter / GENERATION).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return super().generation
        return values if isinstance(values, dict) else super().generation

    def load(self, *, dtype: torch.dtype | None = None, device: str = "cpu", attend: Attend | None = None) -> Llama:
        """The base with the change added.

        Raises:
            CheckpointError: the base is quantized, either is damaged, or they do not fit each other.
        """
        self.learnable_config()  # nothing can be added to quantized weights
        model = super().load(dtype=dtype, device=device, attend=attend)
        merge(model, self.adapter)
        return model


def is_adapter(path: Path) -> bool:
    """Whether a path is PEFT's folder."""
    return (path / CONFIG).is_file()


def open_adapter(name: str, folder: Path, base: Path | None = None) -> Adapted:
    """An adapter over its base: the one given, or the one that its adapter_config.json names, as a path.

    Raises:
        ConfigError: the base is not found.
        CheckpointError: the folder is damaged, or the base is no checkpoint.
    """
    found = open_checkpoint(base if base is not None else _named_base(name, folder))
    return Adapted(found.place, found.format, folder)


def _named_base(name: str, folder: Path) -> Path:
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: expected a PEFT adapter's settings ({error})") from None
    told = f"give the checkpoint it was trained on as bases.{name}=PATH"
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{folder / CONFIG} names no base model (base_model_name_or_path); {told}")
    places = [Path(base), folder / base, folder.parent / base]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise ConfigError(f"{folder}: its base model {base} ({CONFIG}) is not here, and nothing is downloaded; {told}")
    return place
