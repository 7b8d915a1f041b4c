"""Reading the checkpoints that Meta ships: `params.json` and one or several `consolidated.NN.pth`.

Several files are the shards of one tensor-parallel model, merged by the rule of each weight. Meta turns adjacent
channels as a pair, Hugging Face channels half a head apart; queries and keys are permuted accordingly.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.errors import CheckpointError, ConfigError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.llama import Attend, LlamaForCausalLM, empty_model

_NAMES = {  # Meta's name -> Hugging Face's, and the dimension along which shards are joined (None: all alike)
    "tok_embeddings": ("model.embed_tokens", 0),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
}
_REQUIRED = ("dim", "n_layers", "n_heads")


def is_meta_checkpoint(folder: Path) -> bool:
    """Whether a folder is in Meta's format."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth"))


def load_meta(
    folder: Path | str, *, dtype: torch.dtype | None = None, attend: Attend | None = None
) -> LlamaForCausalLM:
    """Open a checkpoint in Meta's format, in eval mode, under Hugging Face's names.

    Files are read with `weights_only`, so that nothing in them is executed, and mapped rather than copied.

    Raises:
        CheckpointError: a file is missing, damaged or holds anything but tensors, or tensors do not fit params.json.
        ConfigError: params.json describes something other than a Llama.
    """
    folder = Path(folder)
    shards = [_read_shard(file) for file in sorted(folder.glob("consolidated.*.pth"))]
    if not shards:
        raise CheckpointError(f"{folder} holds no consolidated.*.pth.")
    config = meta_config(folder / "params.json", shards)
    weights = {}
    for name in shards[0]:
        if name == "rope.freqs":  # a table that can be computed
            continue
        target, tensor = _merge(folder, name, shards, config)
        weights[target] = tensor.to(dtype or tensor.dtype)
    model = empty_model(config, attend)
    _check(folder, weights, model)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(True).eval()


def meta_config(file: Path, shards: list[dict[str, Tensor]]) -> ModelConfig:
    """Translate params.json; what it leaves out (vocabulary, width of the feed-forward layer) is read off the weights.

    Raises:
        CheckpointError: the file is missing or not JSON.
        ConfigError: a value is missing or impossible.
    """
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{file} cannot be read as JSON: {fault}.") from None
    if missing := [name for name in _REQUIRED if name not in params]:
        raise ConfigError(f"{file} lacks {', '.join(missing)}.")
    scaled = bool(params.get("use_scaled_rope"))
    try:
        embedding, first_gate = shards[0]["tok_embeddings.weight"], shards[0]["layers.0.feed_forward.w1.weight"]
    except KeyError as name:
        raise CheckpointError(f"{file.parent}: its consolidated.*.pth lack the tensor {name}.") from None
    split_rows = embedding.shape[1] == params["dim"]  # Llama 1 and 2 split the embedding by columns instead
    return ModelConfig(
        vocab_size=embedding.shape[0] * (len(shards) if split_rows else 1),
        hidden_size=params["dim"],
        intermediate_size=first_gate.shape[0] * len(shards),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
        max_position_embeddings=131_072 if scaled else params.get("max_seq_len", 8192),
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=params.get("rope_theta", 10_000.0),
        rope_scaling=RopeScaling(factor=params.get("rope_scaling_factor", 8.0)) if scaled else None,
        tie_word_embeddings="output.weight" not in shards[0],
    )


def feed_forward_width(hidden_size: int, multiplier: float, multiple_of: int) -> int:
    """The rule by which Meta derives F from D: two thirds of 4 D, times a multiplier, rounded up.

    Example: feed_forward_width(4096, 1.3, 1024) == 14336 (Llama 3 8B).
    """
    width = int(multiplier * int(2 * (4 * hidden_size) / 3))
    return multiple_of * math.ceil(width / multiple_of)


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a query or key projection from Meta's channel pairs (2i, 2i + 1) to (i, i + C/2)."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def halves_to_interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `interleaved_to_halves`."""
    rows, columns = weight.shape
    return weight.view(num_heads, 2, rows // num_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _read_shard(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} holds something other than tensors, and was not opened: it could run code."
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError) as fault:
        raise CheckpointError(f"{file} is truncated or damaged: {str(fault).splitlines()[0]}") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{file} does not hold a table of tensors.")
    return content


def _merge(folder: Path, name: str, shards: list[dict[str, Tensor]], config: ModelConfig) -> tuple[str, Tensor]:
    """One weight from all shards, under its Hugging Face name and in its channel order."""
    layer = re.match(r"layers\.(\d+)\.", name)
    inner = name.removeprefix(layer.group() if layer else "").removesuffix(".weight")
    if inner not in _NAMES:
        raise CheckpointError(f"{folder}: the tensor {name} is not part of a Llama.")
    if lacking := [i for i, shard in enumerate(shards) if name not in shard]:
        raise CheckpointError(f"{folder}: consolidated.{lacking[0]:02d}.pth lacks the tensor {name}.")
    target, dimension = _NAMES[inner]
    parts = [shard[name] for shard in shards]
    if inner == "tok_embeddings" and parts[0].shape[1] != config.hidden_size:
        dimension = 1
    if inner in ("attention.wk", "attention.wv"):
        parts = _without_replicas(parts, config)
    try:
        merged = parts[0] if dimension is None or len(parts) == 1 else torch.cat(parts, dim=dimension)
        merged = _REORDERED.get(inner, lambda weight, _: weight)(merged, config)
    except RuntimeError:
        raise CheckpointError(f"{folder}: the shards of {name} do not fit together: {_shapes(parts)}.") from None
    prefix = f"model.layers.{layer[1]}." if layer else ""
    return f"{prefix}{target}.weight", merged


_REORDERED: dict[str, Callable[[Tensor, ModelConfig], Tensor]] = {
    "attention.wq": lambda weight, config: interleaved_to_halves(weight, config.num_attention_heads),
    "attention.wk": lambda weight, config: interleaved_to_halves(weight, config.num_key_value_heads),
}


def _without_replicas(parts: list[Tensor], config: ModelConfig) -> list[Tensor]:
    """Where there are more shards than key-value heads, each head is repeated; keep one of each."""
    repeats = max(1, sum(len(part) for part in parts) // (config.num_key_value_heads * config.head_dim))
    return parts[::repeats]


def _check(folder: Path, weights: dict[str, Tensor], model: LlamaForCausalLM) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{folder} lacks {name} (in Hugging Face's words), which its params.json asks for.")
        if weights[name].shape != shape:
            found = list(weights[name].shape)
            raise CheckpointError(f"{folder}: {name} has the shape {found}, but params.json asks for {list(shape)}.")
    if extra := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"{folder} holds {extra[0]}, for which its params.json has no place.")


def _shapes(parts: list[Tensor]) -> str:
    return ", ".join(str(list(part.shape)) for part in parts)
