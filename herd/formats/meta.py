"""Meta's checkpoint format: `params.json` and one or several `consolidated.NN.pth`, read and written.

Several files are tensor-parallel shards, in which each weight is split along its own dimension. Meta's RoPE rotates
adjacent channels, Hugging Face's rotates channels half a head apart; queries and keys are permuted accordingly.

Source: Meta's llama-models (`checkpoint.py`), transformers' conversion script.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from herd.errors import CheckpointError, ConfigError
from herd.formats.places import PARAMS
from herd.formats.pth import TensorPlan, read_pth, write_pth
from herd.formats.stored import StoredTensor, StoredWeights, check_fit, is_rotary, some_tensors, spans
from herd.model.config import ModelConfig
from herd.model.rope import halves_to_interleaved
from herd.model.scaling import RopeScaling

NAMES = {  # Meta's name -> Hugging Face's, and the dimension along which shards are joined (None: replicated)
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
_META_NAMES = {target: (name, dimension) for name, (target, dimension) in NAMES.items()}
_KEYS_AND_VALUES = ("attention.wk", "attention.wv")
_REQUIRED = ("dim", "n_layers", "n_heads")
_FREQUENCIES = "rope.freqs"  # computed, not read
_LLAMA3_ROWS, _LLAMA3_IDS = 128_256, {"bos_token_id": 128_000, "eos_token_id": (128_001, 128_008, 128_009)}

# ---- read ------------------------------------------------------------------------------------------------------------


def open_meta(folder: Path) -> StoredWeights:
    """A checkpoint in Meta's format, its shards joined as they are read.

    Files are read with `weights_only`, so that no code in them is executed, and memory-mapped.

    Raises:
        CheckpointError: a file is missing, damaged or holds anything but tensors, or tensors do not fit params.json.
        ConfigError: params.json describes something other than a Llama.
    """
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise CheckpointError(f"{folder} holds no consolidated.*.pth.")
    _check_numbering(folder, files)
    shards = [_read_shard(file) for file in files]
    config = meta_config(folder / PARAMS, shards)
    tensors = {}
    for file, shard in zip(files[1:], shards[1:], strict=True):
        if extra := [name for name in shard if name not in shards[0]]:
            raise CheckpointError(f"{file} holds {some_tensors(extra)}, which {files[0].name} lacks.")
    for name in shards[0]:
        if name != _FREQUENCIES:
            target, tensor = _joined(folder, name, files, shards, config)
            tensors[target] = tensor
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return check_fit(StoredWeights(folder, "meta", config, tensors, adjacent=True), PARAMS)


def meta_config(file: Path, shards: list[dict[str, Tensor]]) -> ModelConfig:
    """The configuration in params.json, with vocabulary and feed-forward width from the weights' shapes.

    Raises:
        CheckpointError: the file is missing or not JSON.
        ConfigError: a value is missing or impossible.
    """
    params = read_params(file)
    try:
        embedding, first_gate = shards[0]["tok_embeddings.weight"], shards[0]["layers.0.feed_forward.w1.weight"]
        (_, columns), (gate_rows, _) = embedding.shape, first_gate.shape
    except KeyError as name:
        raise CheckpointError(f"{file.parent}: its consolidated.*.pth lack the tensor {name}.") from None
    except ValueError:
        raise CheckpointError(
            f"{file.parent}: tok_embeddings.weight or layers.0.feed_forward.w1.weight is not a matrix."
        ) from None
    rows = embedding.shape[0] * (len(shards) if columns == params["dim"] else 1)  # Llama 1 and 2 split by columns
    tied = "output.weight" not in shards[0] or _are_equal(shards, "output.weight", "tok_embeddings.weight")
    try:
        return config_of_params(params, rows, gate_rows * len(shards), tied, _token_ids(file.parent, rows))
    except ConfigError as fault:
        raise ConfigError(f"{file}: {fault}") from None


_FOREIGN = {
    "sliding_window": "a sliding window (Mistral)",
    "moe": "a mixture of experts (Mixtral)",
    "moe_args": "a mixture of experts (Llama 4)",
    "quantization_args": "weights quantized for ExecuTorch",
    "lora_args": "weights with a separate adapter",
    "use_qk_norm": "norms of queries and keys (Llama 4)",
    "attention_chunk_size": "attention in chunks (Llama 4)",
    "nope_layer_interval": "layers without positions (Llama 4)",
}  # of params.json, as some tools write it


def read_params(file: Path) -> dict[str, Any]:
    """The content of params.json.

    Raises:
        CheckpointError: the file is missing or not JSON.
        ConfigError: a value is missing.
    """
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise CheckpointError(f"{file} cannot be read as JSON: {fault}.") from None
    if not isinstance(params, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(params).__name__}.")
    if missing := [name for name in _REQUIRED if name not in params]:
        raise ConfigError(f"{file} lacks {', '.join(missing)}.")
    if wrong := [name for name in _REQUIRED if not isinstance(params[name], int)]:
        raise ConfigError(f"{file}: {wrong[0]} must be a whole number, not {params[wrong[0]]!r}.")
    return params


def config_of_params(
    params: dict[str, Any], vocab_size: int, intermediate_size: int, tied: bool, token_ids: dict[str, Any]
) -> ModelConfig:
    """The configuration from params.json and from what follows from the weights."""
    for key, what in _FOREIGN.items():
        if params.get(key):
            raise ConfigError(f"{key} is {params[key]!r}: {what}, which is not supported.")
    scaled = bool(params.get("use_scaled_rope"))
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=params["dim"],
        intermediate_size=intermediate_size,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
        head_dim=cast("int", params.get("head_dim")),
        max_position_embeddings=params.get("max_seq_len") or _context(params, vocab_size),
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=params.get("rope_theta", 10_000.0),
        rope_scaling=_scaling(params) if scaled else None,
        tie_word_embeddings=tied,
        **token_ids,
    )


def _context(params: dict[str, Any], vocab_size: int) -> int:
    """Each Llama generation's context, if params.json does not give it; 1 and 2 are recognized by their vocabulary."""
    if params.get("use_scaled_rope"):
        return 131_072
    if vocab_size not in (32_000, 32_016):  # the second is Code Llama's
        return 8192
    if params.get("rope_theta", 0.0) >= 1e6:
        return 16_384
    return 2048 if params.get("norm_eps", 1e-5) < 5e-6 else 4096


def _scaling(params: dict[str, Any]) -> RopeScaling:
    return RopeScaling(
        factor=params.get("rope_scaling_factor") or 8.0, high_freq_factor=params.get("rope_high_freq_factor") or 4.0
    )


def feed_forward_width(hidden_size: int, multiplier: float, multiple_of: int) -> int:
    """Meta's rule for F from D: two thirds of 4 D, times a multiplier, rounded up.

    Example: feed_forward_width(4096, 1.3, 1024) == 14336 (Llama 3 8B).
    """
    width = int(multiplier * int(2 * (4 * hidden_size) / 3))
    return multiple_of * math.ceil(width / multiple_of)


def _token_ids(folder: Path, num_rows: int) -> dict[str, Any]:
    """BOS and EOS ids: not in params.json, so from generation_config.json or the folder's name."""
    try:
        file = folder / "generation_config.json"
        values = json.loads(file.read_text(encoding="utf-8") if file.is_file() else "{}")
        return {name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in values}
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    if num_rows != _LLAMA3_ROWS:
        return {}
    is_instruct = "instruct" in f"{folder.resolve().parent.name}/{folder.resolve().name}".lower()
    return _LLAMA3_IDS if is_instruct else _LLAMA3_IDS | {"eos_token_id": 128_001}


def _check_numbering(folder: Path, files: list[Path]) -> None:
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02d}.pth":
            raise CheckpointError(f"{folder}: consolidated.{number:02d}.pth is missing; there is {file.name}.")


def _read_shard(file: Path) -> dict[str, Tensor]:
    content = read_pth(file)
    for name, tensor in content.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{file}: tensor {name} is {str(tensor.dtype).removeprefix('torch.')}, expected floats."
            )
    return content


def _are_equal(shards: list[dict[str, Tensor]], first: str, second: str) -> bool:
    """Whether two tensors are equal; a few rows usually show a difference."""
    pairs = [(shard[first], shard[second]) for shard in shards if first in shard and second in shard]
    if any(a.shape != b.shape or not torch.equal(a[:8], b[:8]) for a, b in pairs):
        return False
    return all(torch.equal(a, b) for a, b in pairs)


def _joined(
    folder: Path, name: str, files: list[Path], shards: list[dict[str, Tensor]], config: ModelConfig
) -> tuple[str, StoredTensor]:
    """One weight, joined from all shards, under its Hugging Face name."""
    layer = re.match(r"layers\.(\d+)\.", name)
    inner = name.removeprefix(layer.group() if layer else "").removesuffix(".weight")
    if inner not in NAMES:
        raise CheckpointError(f"{folder}: the tensor {name} is not part of a Llama.")
    if lacking := [file.name for file, shard in zip(files, shards, strict=True) if name not in shard]:
        raise CheckpointError(f"{folder}: {lacking[0]} lacks the tensor {name}.")
    target, dimension = NAMES[inner]
    parts = [shard[name] for shard in shards]
    if inner == "tok_embeddings" and parts[0].shape[-1] != config.hidden_size:
        dimension = 1
    if inner in _KEYS_AND_VALUES:
        parts = _without_replicas(parts, config)
    if dimension is None:
        parts = parts[:1]
    prefix = f"model.layers.{layer[1]}." if layer else ""
    stored = StoredTensor(
        name=name,
        dtype=str(parts[0].dtype).removeprefix("torch."),
        shape=_joined_shape(folder, name, parts, dimension or 0),
        num_bytes=sum(part.nbytes for part in parts),
        file=files[0] if len(files) == 1 else folder,
        rows=_rows_of(parts, dimension or 0),
    )
    return f"{prefix}{target}.weight", stored


def _joined_shape(folder: Path, name: str, parts: list[Tensor], dimension: int) -> tuple[int, ...]:
    shape = list(parts[0].shape)
    rest = {tuple(part.shape[:dimension] + part.shape[dimension + 1 :]) for part in parts}
    if len(rest) > 1 or len(shape) <= dimension or len({part.dtype for part in parts}) > 1:
        kinds = ", ".join(f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in parts)
        raise CheckpointError(f"{folder}: the shards of {name} do not fit together: {kinds}.")
    shape[dimension] = sum(part.shape[dimension] for part in parts)
    return tuple(shape)


def _rows_of(parts: list[Tensor], dimension: int):
    def rows(begin: int, end: int) -> Tensor:
        if dimension == 1:
            return torch.cat([part[begin:end] for part in parts], 1)
        taken, offset = [], 0
        for part in parts:
            taken.append(part[max(begin - offset, 0) : max(end - offset, 0)])
            offset += len(part)
        taken = [part for part in taken if len(part)]
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    return rows


def _without_replicas(parts: list[Tensor], config: ModelConfig) -> list[Tensor]:
    """With more shards than key-value heads, each head is replicated; keep one of each."""
    repeats = max(1, sum(len(part) for part in parts) // (config.num_key_value_heads * config.head_dim))
    return parts[::repeats]


# ---- write -----------------------------------------------------------------------------------------------------------


def params_of(config: ModelConfig) -> dict[str, Any]:
    """The content of params.json for a model.

    Raises:
        CheckpointError: Meta's format does not support a feature of this model.
    """
    scaling, usual = config.rope_scaling, RopeScaling()
    if scaling and (
        not isinstance(scaling, RopeScaling)
        or replace(usual, factor=scaling.factor, high_freq_factor=scaling.high_freq_factor) != scaling
    ):
        raise CheckpointError(
            f"Meta's format has only Llama 3.1's RoPE scaling (low_freq_factor 1, 8192 tokens), not {scaling}."
        )
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise CheckpointError(
            f"Meta's format has no head_dim: {config.head_dim} is not hidden_size / num_attention_heads."
        )
    if config.attention_bias or config.mlp_bias:
        raise CheckpointError("Meta's format does not support biases.")
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        **_width_rule(config),
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
    }
    if isinstance(scaling, RopeScaling) and scaling.factor != usual.factor:
        params["rope_scaling_factor"] = scaling.factor
    if isinstance(scaling, RopeScaling) and scaling.high_freq_factor != usual.high_freq_factor:
        params["rope_high_freq_factor"] = scaling.high_freq_factor
    if config.max_position_embeddings != (131_072 if scaling else 8192):
        params["max_seq_len"] = config.max_position_embeddings
    return params


def _width_rule(config: ModelConfig) -> dict[str, float]:
    """A multiplier and a multiple for which `feed_forward_width` gives this width; those of released models first."""
    plain, width = int(2 * (4 * config.hidden_size) / 3), config.intermediate_size
    step = math.gcd(width, 4096)
    rules = [(1.3, 1024), (1.3, 4096), (1.2, 4096), (1.5, 256), (1.0, 256), ((width - step / 2) / plain, step)]
    multiplier, multiple_of = next(rule for rule in rules if feed_forward_width(config.hidden_size, *rule) == width)
    return {"ffn_dim_multiplier": multiplier, "multiple_of": multiple_of}


def plan_shards(config: ModelConfig, shapes: dict[str, tuple[int, ...]], num_shards: int) -> dict[str, TensorPlan]:
    """Meta's name of each tensor, by Hugging Face's name, and the shape of its part in one of `num_shards` files.

    Raises:
        CheckpointError: a tensor cannot be split into that many equal parts.
    """
    kv_parts = min(num_shards, config.num_key_value_heads)
    if num_shards % kv_parts or config.num_attention_heads % num_shards:
        raise CheckpointError(
            f"{num_shards} shards: {config.num_attention_heads} heads and {config.num_key_value_heads} key-value heads "
            "cannot be split evenly."
        )
    plans = {}
    for name, shape in shapes.items():
        meta_name, dimension = _meta_name(name)
        parts = kv_parts if meta_name.endswith(tuple(f"{inner}.weight" for inner in _KEYS_AND_VALUES)) else num_shards
        if dimension is not None and shape[dimension] % parts:
            raise CheckpointError(f"{num_shards} shards: {name} of shape {list(shape)} cannot be split into {parts}.")
        part = tuple(size // parts if axis == dimension else size for axis, size in enumerate(shape))
        plans[name] = TensorPlan(meta_name, part)
    if config.tie_word_embeddings:  # Meta's 1B and 3B contain the shared matrix under both names
        plans["lm_head.weight"] = TensorPlan(
            "output.weight", plans["model.embed_tokens.weight"].shape, "tok_embeddings.weight"
        )
    return plans


def write_meta(weights: StoredWeights, folder: Path, dtype: torch.dtype, num_shards: int) -> Iterator[int]:
    """Write params.json and the consolidated.NN.pth files into a folder; yields the bytes of each chunk.

    Raises:
        CheckpointError: the format does not support this model, or it cannot be split into that many shards.
    """
    params = params_of(weights.config)
    plans = plan_shards(weights.config, {name: t.shape for name, t in weights.tensors.items()}, num_shards)
    for shard in range(num_shards):
        pieces = {
            plan.name: _pieces(weights, name, plan, shard, num_shards, dtype)
            for name, plan in plans.items()
            if plan.same_as is None
        }
        yield from write_pth(folder / f"consolidated.{shard:02d}.pth", list(plans.values()), dtype, pieces)
    (folder / PARAMS).write_text(json.dumps(params, indent=1) + "\n", encoding="utf-8")


def _pieces(
    weights: StoredWeights, name: str, plan: TensorPlan, shard: int, num_shards: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """One shard's part of a tensor in Meta's order, a few rows at a time."""
    tensor, head_dim = weights.tensors[name], weights.config.head_dim
    if plan.shape[0] != tensor.shape[0]:  # split by rows; with fewer heads than shards, each is replicated
        part = shard * (tensor.shape[0] // plan.shape[0]) // num_shards
        first, columns = part * plan.shape[0], slice(None)
    elif plan.shape != tensor.shape:
        first, columns = 0, slice(shard * plan.shape[1], (shard + 1) * plan.shape[1])
    else:
        first, columns = 0, slice(None)
    for begin, end in spans(plan.shape, head_dim):
        rows = tensor.rows(first + begin, first + end)
        if is_rotary(name) and not weights.adjacent:
            rows = halves_to_interleaved(rows, len(rows) // head_dim)
        yield (rows[:, columns] if rows.ndim > 1 else rows).to(dtype).contiguous()


def _meta_name(name: str) -> tuple[str, int | None]:
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    inner = name.removeprefix(layer.group() if layer else "").removesuffix(".weight")
    if inner not in _META_NAMES:
        raise CheckpointError(f"Meta's format has no name for the tensor {name}.")
    meta_name, dimension = _META_NAMES[inner]
    return f"layers.{layer[1]}.{meta_name}.weight" if layer else f"{meta_name}.weight", dimension
