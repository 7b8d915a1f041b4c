"""Llama in llama.cpp's GGUF files: fields and tensor names, read and written.

Queries and keys are in Meta's order of channels; norms are float32. Blocks are dequantized as they are read. RoPE
scaling is in `gguf_rope.py`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from herd.errors import CheckpointError, ConfigError
from herd.formats import ggml, gguf
from herd.formats.blocks import to_blocks
from herd.formats.gguf import GGUFFile, GGUFTensor
from herd.formats.gguf_rope import TABLES, scaling_fields, scaling_tables, with_scaling
from herd.formats.kquants import MIXES, type_in_mix
from herd.formats.stored import StoredTensor, StoredWeights, check_fit, is_rotary, spans
from herd.formats.tail import check_tail
from herd.log import say
from herd.model.config import ModelConfig
from herd.model.rope import halves_to_interleaved

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32}
_TORCH_NAMES = {name: str(dtype).removeprefix("torch.") for name, dtype in ggml.PLAIN.items()}
_IDS = "herd.token_ids"  # Herd's own field, for ids that llama.cpp does not store

_FOREIGN = {
    "llama.attention.causal": (True, "bidirectional attention"),
    "llama.attention.sliding_window": (0, "a sliding window"),
    "llama.attention.scale": (0.0, "attention scaled in another way (Granite)"),
    "llama.attention.clamp_kqv": (0.0, "clamped queries, keys and values"),
    "llama.attention.max_alibi_bias": (0.0, "ALiBi positions"),
    "llama.attn_logit_softcapping": (0.0, "soft-capped attention logits"),
    "llama.final_logit_softcapping": (0.0, "soft-capped logits"),
    "llama.logit_scale": (1.0, "scaled logits (Granite)"),
    "llama.embedding_scale": (1.0, "a scaled embedding (Granite)"),
    "llama.residual_scale": (1.0, "scaled residuals (Granite)"),
    "llama.use_parallel_residual": (False, "attention in parallel to the feed-forward layer"),
    "llama.attention.layer_norm_epsilon": (0.0, "LayerNorm"),
}
"""For each field, the value that means "off", and the feature that other values ask for."""
_FIELDS = {
    f"llama.{name}"
    for name in (
        "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "expert_count",
        "expert_used_count", "tensor_data_layout", "attention.head_count", "attention.head_count_kv",
        "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    )
}  # fmt: skip

TYPES = tuple(_FILE_TYPES)
"""The types that can be written."""


# ---- read ------------------------------------------------------------------------------------------------------------


def open_gguf(file: GGUFFile) -> StoredWeights:
    """A Llama in a GGUF file.

    Raises:
        CheckpointError: the file is damaged, or its tensors do not fit its fields.
        ConfigError: it describes something other than a Llama.
    """
    path = file.path
    contents = {part: _mapped(part) for part in {tensor.file for tensor in file.tensors.values()}}
    for part in contents:
        check_tail(part, {name: (t.offset, t.shape) for name, t in file.tensors.items() if t.file == part})
    config = config_of_file(file)
    tensors = {
        _huggingface_name(path, name): _stored(name, tensor, contents[tensor.file])
        for name, tensor in file.tensors.items()
        if name not in TABLES
    }
    return check_fit(StoredWeights(path, "gguf", config, tensors, adjacent=True), "list of fields")


def config_of_file(file: GGUFFile) -> ModelConfig:
    """The model configuration in a file's fields.

    Raises:
        ConfigError: it is not a Llama, or has a feature that is not supported.
        CheckpointError: a field or the embedding is missing.
    """
    fields, path = file.fields, file.path
    _check_is_llama(fields, path)
    heads = _field(file, "llama.attention.head_count", int)
    width = _field(file, "llama.embedding_length", int)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path} lacks the tensor token_embd.weight.")
    try:
        config = ModelConfig(
            vocab_size=embedding.shape[0],
            hidden_size=width,
            intermediate_size=_field(file, "llama.feed_forward_length", int),
            num_hidden_layers=_field(file, "llama.block_count", int),
            num_attention_heads=heads,
            num_key_value_heads=_field(file, "llama.attention.head_count_kv", int, heads),
            head_dim=_field(file, "llama.attention.key_length", int, 0) or cast("int", None),
            max_position_embeddings=_field(file, "llama.context_length", int),
            rms_norm_eps=round(_field(file, "llama.attention.layer_norm_rms_epsilon", float), 12),
            rope_theta=_field(file, "llama.rope.freq_base", float, 10_000.0),
            tie_word_embeddings="output.weight" not in file.tensors,
            attention_bias="blk.0.attn_q.bias" in file.tensors,
            mlp_bias="blk.0.ffn_up.bias" in file.tensors,
            **_token_ids(fields),
        )
    except ConfigError as fault:
        raise ConfigError(f"{path}: {fault}") from None
    if fields.get("llama.rope.dimension_count", config.head_dim) != config.head_dim:
        raise ConfigError(f"{path}: RoPE covers only part of each head (llama.rope.dimension_count), unlike a Llama's.")
    return with_scaling(file, config)


def _check_is_llama(fields: dict[str, Any], path: Path) -> None:
    if (architecture := fields.get("general.architecture")) != "llama":
        raise ConfigError(f"{path}: general.architecture is {architecture!r}; only 'llama' is supported.")
    if (kind := fields.get("general.type", "model")) != "model":
        raise ConfigError(
            f"{path}: general.type is {kind!r}: a part of a model (an adapter, a projector), not a model."
        )
    if fields.get("llama.expert_count"):
        raise ConfigError(f"{path}: a mixture of {fields['llama.expert_count']} experts (Mixtral); a Llama has none.")
    for key, (neutral, what) in _FOREIGN.items():
        if fields.get(key) not in (None, neutral):
            raise ConfigError(f"{path}: the field {key} is {fields[key]!r}: {what}, which is not supported.")
    keys, values = (fields.get(f"llama.attention.{name}_length") for name in ("key", "value"))
    if None not in (keys, values) and keys != values:
        raise ConfigError(f"{path}: keys of {keys} channels but values of {values}; a Llama's have the same number.")
    unknown = [key for key in fields if key.startswith("llama.") and key not in (*_FIELDS, *_FOREIGN)]
    unknown = [key for key in unknown if not key.startswith("llama.rope.")]  # handled in `gguf_rope.py`
    if unknown:
        say(f"  {path}: ignored, as by llama.cpp: {', '.join(unknown)}")


def _field(file: GGUFFile, key: str, kind: type, default: Any = None) -> Any:
    value = file.fields.get(key, default)
    if value is None:
        raise CheckpointError(f"{file.path} lacks the field {key}.")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{file.path}: the field {key} is {value!r}, expected {kind.__name__}.")
    return value


def _token_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """BOS, EOS and padding ids."""
    known = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    try:
        return {name: value for name, value in json.loads(fields[_IDS]).items() if name in known}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in known.items()}
        return {name: value for name, value in ids.items() if isinstance(value, int)}


def _mapped(file: Path) -> Tensor:
    with open(file, "rb") as stream:
        return torch.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _stored(name: str, tensor: GGUFTensor, content: Tensor) -> StoredTensor:
    num_rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    matrix = content[tensor.offset : tensor.offset + tensor.num_bytes].view(num_rows, -1)

    def rows(begin: int, end: int) -> Tensor:
        if len(tensor.shape) == 1:
            return ggml.dequantize(matrix, tensor.type)[0, begin:end]
        return ggml.dequantize(matrix[begin:end], tensor.type)

    dtype = _TORCH_NAMES.get(tensor.type, tensor.type)
    blocks = partial(to_blocks, matrix, tensor.type) if len(tensor.shape) > 1 else None
    return StoredTensor(name, dtype, tensor.shape, tensor.num_bytes, tensor.file, rows, blocks)


def _huggingface_name(path: Path, name: str) -> str:
    words = name.split(".")
    if len(words) == 2 and words[0] in _OUTER:
        return f"{_OUTER[words[0]]}.{words[1]}"
    if len(words) == 4 and words[0] == "blk" and words[2] in _INNER:
        return f"model.layers.{words[1]}.{_INNER[words[2]]}.{words[3]}"
    raise CheckpointError(f"{path} holds the tensor {name}, which a Llama does not have.")


# ---- write -----------------------------------------------------------------------------------------------------------


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor, from Hugging Face's.

    Example: gguf_name("model.layers.0.self_attn.q_proj.weight") == "blk.0.attn_q.weight".
    """
    stem, _, kind = name.rpartition(".")
    outer = {target: source for source, target in _OUTER.items()}
    if stem in outer:
        return f"{outer[stem]}.{kind}"
    inner = {target: source for source, target in _INNER.items()}
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    if rest not in inner:
        raise CheckpointError(f"GGUF has no name for the tensor {name}.")
    return f"blk.{layer}.{inner[rest]}.{kind}"


def types_of(config: ModelConfig, shapes: dict[str, tuple[int, ...]], type: str) -> dict[str, str]:
    """The type in which each tensor is written, by Hugging Face's names.

    Norms and biases stay float32. With Q4_0, embedding and head are Q8_0, because quantization hurts them most; Q4_K_M,
    Q5_K_M and Q6_K are llama.cpp's mixes. A matrix whose rows are not whole blocks stays float16.
    """
    chosen = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            wanted = "F32"
        elif type in MIXES:
            wanted = type_in_mix(config, name, shape, type)
        else:
            wanted = "Q8_0" if type == "Q4_0" and not name.startswith("model.layers.") else type
        chosen[name] = "F16" if shape[-1] % gguf.TYPES[wanted].num_weights else wanted
    return chosen


def fields_of(config: ModelConfig, tokenizer_fields: dict[str, Any], type: str, name: str) -> dict[str, Any]:
    """The fields of a Llama's file; `tokenizer_fields` are a tokenizer's `gguf_fields`."""
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[type],
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        _IDS: json.dumps({key: value for key, value in ids.items() if value is not None}),
    }
    return fields | scaling_fields(config) | tokenizer_fields


def plan_gguf(
    config: ModelConfig, shapes: dict[str, tuple[int, ...]], type: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of the file, by llama.cpp's names, in order."""
    types = types_of(config, shapes, type)
    plan = {gguf_name(name): (types[name], shape) for name, shape in shapes.items()}
    return {name: ("F32", tuple(table.shape)) for name, table in scaling_tables(config).items()} | plan


def write_gguf(
    weights: StoredWeights, path: Path, type: str, tokenizer_fields: dict[str, Any], name: str
) -> Iterator[int]:
    """Write a file, a few rows at a time; yields the bytes of each chunk.

    Raises:
        CheckpointError: a weight does not fit float16.
    """
    config = weights.config
    shapes = {key: tensor.shape for key, tensor in weights.tensors.items()}
    plan, types = plan_gguf(config, shapes, type), types_of(config, shapes, type)
    with open(path, "wb") as stream:
        stream.write(gguf.header(fields_of(config, tokenizer_fields, type, name), plan))
        for table in scaling_tables(config).values():
            stream.write(table.numpy().tobytes())
            gguf.write_padding(stream)
        for key, shape in shapes.items():
            for begin, end in spans(shape, config.head_dim):
                content = _encoded(weights, key, begin, end, types[key])
                stream.write(content.numpy().data)
                yield content.nbytes
            gguf.write_padding(stream)


def _encoded(weights: StoredWeights, name: str, begin: int, end: int, type: str) -> Tensor:
    rows = weights.tensors[name].rows(begin, end)
    if is_rotary(name) and not weights.adjacent:
        rows = halves_to_interleaved(rows, len(rows) // weights.config.head_dim)
    content = ggml.quantize(rows.reshape(len(rows), -1), type)
    if type == "F16" and not torch.isfinite(content.view(torch.float16)).all():
        raise CheckpointError(
            f"{weights.tensors[name].file}: tensor {weights.tensors[name].name} holds values beyond float16; "
            "choose bfloat16."
        )
    return content
