"""The shape of a new model: given in full, or derived from a size or depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from herd.config import settings, to_dict
from herd.model.config import ModelConfig, num_parameters
from herd.model.sizes import FittedLaw, fitted_hyperparameters, hyperparameters, model_of_depth, model_of_size
from herd.tokenizer.tokenizer import Tokenizer

_DIALLED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
    "rope_theta",
)
_SHAPE = {field.name for field in fields(ModelConfig)}


@settings
class ModelSettings:
    """The shape of a new model; vocabulary and context follow from the tokenizer and the rows."""

    hidden_size: int = 256
    """Width D of the residual stream."""
    num_hidden_layers: int = 6
    """Number of transformer blocks."""
    num_attention_heads: int = 4
    """Query heads H."""
    num_key_value_heads: int = 2
    """Key-value heads K, a divisor of the query heads."""
    intermediate_size: int = 704
    """Width F of the feed-forward layer."""
    tie_word_embeddings: bool = True
    """Share the embedding with the output projection, as in the smallest Llamas."""
    rope_theta: float | None = None
    """Base of the RoPE frequencies; default: 500,000 for a new model, else the starting checkpoint's."""
    initializer_range: float = 0.02
    """Standard deviation of newly initialized weights."""
    embedding_range: float | None = None
    """Standard deviation of newly initialized embeddings; default: `initializer_range`."""

    def __post_init__(self):
        if min(self.initializer_range, self.embedding_range or 0.0) < 0:
            raise ValueError("initializer_range and embedding_range must be 0 or more")


def new_config(shape: ModelSettings, tokenizer: Tokenizer, row_tokens: int) -> ModelConfig:
    """The configuration of a new model, from its shape, its tokenizer and the length of its rows."""
    return ModelConfig(
        **{name: value for name, value in to_dict(shape).items() if value is not None and name in _SHAPE},
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=row_tokens,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )


def dialled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of pre-training that follow from `size` or `depth`: the shape, and by scaling laws the rest
    (`herd.model.sizes`); none if neither is given.

    Raises:
        ValueError: both are given, or one together with a checkpoint.
    """
    size, depth = values.get("size"), values.get("depth")
    if size is None and depth is None:
        return {}
    if size is not None and depth is not None:
        raise ValueError("`size` and `depth` are alternatives: give one of them")
    if values.get("checkpoint") is not None:
        raise ValueError("`size` and `depth` are only for a new model; `checkpoint` already has a shape")
    shape = model_of_size(str(size)) if size is not None else model_of_depth(_whole(depth))
    law = values.get("scaling")
    count = num_parameters(shape)
    found = hyperparameters(count) if law is None else fitted_hyperparameters(count, _law(Path(str(law))))
    row_tokens = 8192 if shape.hidden_size >= 2048 else 2048 if shape.hidden_size >= 768 else 512
    return {
        "model": {name: getattr(shape, name) for name in _DIALLED},
        "tokens": float(found.tokens),
        "batch": {
            "tokens": max(found.batch_tokens, row_tokens),
            "row_tokens": row_tokens,
            "micro_tokens": max(row_tokens, 4096),
        },
        "optimizer": {"learning_rate": found.learning_rate},
        "schedule": {"warmup_steps": found.warmup_steps},
    }


def _law(folder: Path) -> FittedLaw:
    """The law in a run folder of `herd scaling fit`."""
    try:
        record = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
        powers = record["law"] | record["dial"]
        given = {field.name: powers[field.name] for field in fields(FittedLaw)}
        return FittedLaw(**{name: (float(one["factor"]), float(one["exponent"])) for name, one in given.items()})
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"scaling: {folder} is no finished run folder of `herd scaling fit`") from None


def _whole(depth: object) -> int:
    if not isinstance(depth, int) or isinstance(depth, bool):
        raise ValueError(f"depth: expected a number of layers, got {depth}")
    return depth
