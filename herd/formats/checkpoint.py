"""Checkpoints: read in any format, written as Hugging Face folders that other engines load as they stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.opened import (
    find_checkpoint,
    holds_fp8,
    is_huggingface,
    open_huggingface,
    open_weights,
    without_leftovers,
)
from herd.formats.safetensors import INDEX, SINGLE, TensorInfo, read_tensors, save_tensors, tensors_in_folder
from herd.formats.stored import StoredWeights, some_tensors
from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig
from herd.model.llama import Attend, Llama, LlamaForCausalLM, LlamaForSequenceClassification, empty_model
from herd.ops.compressed import (
    Scheme,
    check_quantization,
    empty_like,
    packed_layers,
    packed_shapes,
    unpack_tensors,
)
from herd.ops.quantized import replace_linears
from herd.run import atomic_folder

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


def load(
    path: Path | str, *, dtype: torch.dtype | None = None, device: str = "cpu", attend: Attend | None = None
) -> Llama:
    """Open a checkpoint in any format (Hugging Face's, Meta's, llama.cpp's), in eval mode.

    `dtype` None keeps what is on disk; what is packed as GGUF's blocks or as 8-bit floats becomes bfloat16. On the CPU
    the weights are mapped from the files, not copied, where a file holds them as they are needed.

    Raises:
        CheckpointError: a file is missing, damaged, its tensors do not fit config.json or are not finite.
        ConfigError: config.json describes something other than a Llama.
    """
    folder = find_checkpoint(path)
    if not is_huggingface(folder):
        return _load_stored(open_weights(folder), dtype, device, attend)
    config = ModelConfig.from_folder(folder)
    tensors = without_leftovers(tensors_in_folder(folder), config)
    if holds_fp8(config, tensors):
        return _load_stored(open_huggingface(folder), dtype, device, attend)
    scheme = check_quantization(config.quantization_config, folder)
    model = empty_model(config, attend)
    quantized = packed_layers(tensors) if scheme else []
    _check_fit(folder, tensors, model, quantized, scheme)
    replace_linears(model, quantized, partial(empty_like, scheme=scheme))
    weights = unpack_tensors(dict(read_tensors(tensors)), scheme)
    kept = {f"{layer}.{part}" for layer in quantized for part in ("weight", "weight_scale")}
    _check_floats(tensors, {name for name in weights if name not in kept and not weights[name].is_floating_point()})
    _check_finite(folder, weights)
    weights = {name: tensor.to(device, None if name in kept else dtype) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    return _finish(model)


def read_config(path: Path | str) -> ModelConfig:
    """The shape of a checkpoint in any format.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: it describes something other than a Llama.
    """
    folder = find_checkpoint(path)
    return ModelConfig.from_folder(folder) if is_huggingface(folder) else open_weights(folder).config


def read_learnable_config(path: Path | str) -> ModelConfig:
    """`read_config` of a checkpoint that is to be learned from; 8-bit floats are learned, and saved, as bfloat16.

    Raises:
        CheckpointError: its weights are quantized in a way in which they can be used, and not be learned.
    """
    folder, config = find_checkpoint(path), read_config(path)
    if config.quantization_config is not None and not holds_fp8(config, tensors_in_folder(folder)):
        raise CheckpointError(f"{folder} is quantized already; give the original weights.")
    return replace(config, quantization_config=None)


def save(
    model: Llama, folder: Path | str, tokenizer: Tokenizer | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint folder, whole or not at all; a folder already there is replaced.

    `dtype` None keeps the model's. Larger than 5 GB, the weights come in shards with an index.

    Raises:
        CheckpointError: the model's weights are quantized.
    """
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    save_weights(model.config, weights, weights.__getitem__, folder, tokenizer, dtype)


def save_weights(
    config: ModelConfig,
    like: dict[str, Tensor],
    read: Callable[[str], Tensor],
    folder: Path | str,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """`save` weights that are read when the file that holds them is written; `like` has their shapes and number types.

    Raises:
        CheckpointError: the weights are quantized.
    """
    if config.quantization_config is not None:
        raise CheckpointError(f"{folder}: a quantized model is not saved again; save the one it was made from.")
    like = {name: one for name, one in like.items() if not (name == "lm_head.weight" and config.tie_word_embeddings)}
    shards = list(_shards(like, dtype))
    with atomic_folder(Path(folder)) as aside:
        files = _shard_names(len(shards))
        for file, names in zip(files, shards, strict=True):
            part = {name: read(name).to("cpu", dtype or like[name].dtype).contiguous() for name in names}
            save_tensors(part, aside / file)
        if len(shards) > 1:
            _write_index(aside, files, shards, like, dtype)
        stored = dtype or next(iter(like.values())).dtype
        _write_json(aside / "config.json", config.to_dict() | {"dtype": str(stored).removeprefix("torch.")})
        _write_json(aside / "generation_config.json", generation_config(config))
        if tokenizer is not None:
            tokenizer.save(aside)


def _load_stored(weights: StoredWeights, dtype: torch.dtype | None, device: str, attend: Attend | None) -> Llama:
    """A model from weights that have to be joined, turned or unpacked as they are read."""
    model = empty_model(replace(weights.config, quantization_config=None), attend)
    dtype = dtype or weights.dtype
    state = {name: weights.read(name, dtype).to(device) for name in weights.tensors}
    _check_finite(weights.path, state)
    model.load_state_dict(state, strict=False, assign=True)
    return _finish(model)


def _finish(model: Llama) -> Llama:
    if isinstance(model, LlamaForCausalLM):
        model.tie_weights()
    return model.requires_grad_(True).eval()


def _check_floats(tensors: dict[str, TensorInfo], whole: set[str]) -> None:
    for name in sorted(whole):
        kind = str(tensors[name].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{tensors[name].file}: tensor {name} holds whole numbers ({kind}), expected floats: its config.json names "
            "no quantization that is read."
        )


def _check_finite(place: Path, weights: dict[str, Tensor]) -> None:
    """Look at every norm and at three rows of every matrix: what a failed run or a torn file leaves shows there.

    Raises:
        CheckpointError: a value is not finite.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        rows = tensor[[0, len(tensor) // 2, -1]] if tensor.ndim > 1 else tensor
        if not torch.isfinite(rows.float()).all():
            raise CheckpointError(
                f"{place}: tensor {name} holds values that are not finite (NaN or infinity): the run that made it "
                "diverged, or the file is damaged. `herd inspect PATH weights=true` lists all such tensors."
            )


def _check_fit(
    folder: Path, tensors: dict[str, TensorInfo], model: Llama, quantized: list[str], scheme: Scheme | None
) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for layer in quantized:
        if shape := expected.pop(f"{layer}.weight", None):
            expected |= {f"{layer}.{part}": packed for part, packed in packed_shapes(*shape, scheme).items()}
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise CheckpointError(f"{folder} lacks {some_tensors(missing)}, which its config.json asks for.")
    if extra:
        raise CheckpointError(f"{folder} holds {some_tensors(extra)}, for which its config.json has no place.")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{tensors[name].file}: tensor {name} has the shape {list(tensors[name].shape)}, "
                f"but config.json asks for {list(shape)}."
            )


def _shards(weights: dict[str, Tensor], dtype: torch.dtype | None) -> Iterator[list[str]]:
    shard, used = [], 0
    for name, tensor in weights.items():
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if shard and used + size > MAX_SHARD_BYTES:
            yield shard
            shard, used = [], 0
        shard.append(name)
        used += size
    yield shard


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _write_index(folder: Path, files: list[str], shards: list[list[str]], weights: dict, dtype) -> None:
    total = sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in weights.values())
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def generation_config(config: ModelConfig) -> dict:
    """Llama 3.1's own sampling settings, and the ids that begin and end a text."""
    values = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return values | {name: list(id) if isinstance(id, tuple) else id for name, id in ids.items() if id is not None}


def as_reward_model(model: LlamaForCausalLM, seed: int, attend: Attend | None = None) -> LlamaForSequenceClassification:
    """A reward model that starts from a language model's layers (shared, not copied), with a fresh small score head."""
    config = reward_config(model.config)
    reward = empty_model(config, attend)
    reward.model = model.model
    weight = model.model.norm.weight
    reward.score.weight = torch.nn.Parameter(fresh_score(config, seed).to(weight.device, weight.dtype))
    return reward


def reward_config(config: ModelConfig) -> ModelConfig:
    """The shape of a reward model made of a language model of this shape."""
    return replace(config, architecture=SEQUENCE_CLASSIFICATION, num_labels=1)


def fresh_score(config: ModelConfig, seed: int) -> Tensor:
    """The score head of a new reward model of this shape: (labels, D) float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(config.num_labels, config.hidden_size).normal_(
        0.0, config.initializer_range, generator=generator
    )
