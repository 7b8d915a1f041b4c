"""Quantizing a checkpoint folder to int8, int4 or FP8, tensor by tensor, within fixed memory."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.folder import read_tensors
from herd.formats.safetensors import INDEX, SINGLE, TensorInfo, save_tensors
from herd.kernels import decoding
from herd.log import say
from herd.model.config import CAUSAL_LM, ModelConfig
from herd.ops.compressed import SCHEMES, Scheme, pack_layer, packed_shapes, quantization_config, takes
from herd.ops.quantized import GROUP
from herd.run import atomic_folder

MEMORY_BYTES = 2_000_000_000
"""Memory for quantizing, beside the tensor being read: half for a shard of the result, half for temporaries."""

_KEPT_DTYPE = torch.bfloat16  # of tensors that are not quantized
_WORKING_BYTES = 24  # temporaries for each weight: float32 copies


@dataclass(frozen=True)
class Quantized:
    """What quantizing changed. Sizes are bytes of the weights on disk."""

    bytes_before: int
    bytes_after: int
    num_layers: int  # linear layers that were quantized


def quantize_folder(
    source: Path | str | Checkpoint, target: Path | str, scheme: Scheme = "int8", memory_bytes: int = MEMORY_BYTES
) -> Quantized:
    """Write a quantized copy of a checkpoint; see `herd.ops.compressed` for what each scheme quantizes.

    All other tensors become bfloat16. At most `memory_bytes` are used beside the tensor being read. The result is in a
    format of compressed-tensors, which `transformers` and vLLM read.

    Raises:
        CheckpointError: the source is missing, damaged, already quantized, no language model, or of a shape that the
            scheme does not support.
    """
    plan = _plan(source, scheme)
    if not plan.layers:
        say(f"  {scheme} quantizes nothing here: the first and the last layer are never quantized")
    decoding.wait()
    work = _Work(scheme, plan.layers, memory_bytes // 2)
    with atomic_folder(Path(target)) as aside:
        bytes_after = _write_shards(aside, plan.tensors, work)
        _write_config(aside, plan.folder, scheme, ignored=_ignored(plan.config, plan.layers))
        _copy_companions(aside, plan.folder)
    bytes_before = sum(info.dtype.itemsize * math.prod(info.shape) for info in plan.tensors.values())
    return Quantized(bytes_before, bytes_after, len(plan.layers))


def quantized_bytes(source: Path | str | Checkpoint, scheme: Scheme = "int8") -> int:
    """Bytes of the weights that `quantize_folder` would write; raises the same errors."""
    plan, total = _plan(source, scheme), 0
    widths = {part: tensor.itemsize for part, tensor in pack_layer(torch.zeros(1, 2 * GROUP), scheme).items()}
    for name, info in plan.tensors.items():
        if name.removesuffix(".weight") in plan.layers:
            num_rows, num_columns = info.shape
            shapes = packed_shapes(num_rows, num_columns, scheme)
            total += sum(widths[part] * math.prod(shape) for part, shape in shapes.items())
        else:
            total += _KEPT_DTYPE.itemsize * math.prod(info.shape)
    return total


@dataclass(frozen=True)
class _Plan:
    """A checkpoint and its layers that are to be quantized."""

    folder: Path
    config: ModelConfig
    tensors: dict[str, TensorInfo]
    layers: set[str]


def _plan(source: Path | str | Checkpoint, scheme: Scheme) -> _Plan:
    if scheme not in SCHEMES:
        raise CheckpointError(f"scheme={scheme}: expected one of {', '.join(SCHEMES)}.")
    checkpoint = open_checkpoint(source)
    folder, tensors, config = checkpoint.place, checkpoint.table, checkpoint.config
    if config.quantization_config is not None:
        raise CheckpointError(f"{folder} is already quantized; give the original weights.")
    if config.architecture != CAUSAL_LM:
        raise CheckpointError(f"{folder} is a {config.architecture}; only language models are quantized.")
    if config.attention_bias or config.mlp_bias:
        raise CheckpointError(f"{folder}: its layers have biases, which quantized layers do not support.")
    layers = [name.removesuffix(".weight") for name in tensors]
    chosen = {name for name in layers if takes(scheme, name, config.num_hidden_layers)}
    _check_shapes(folder, tensors, chosen, scheme)
    return _Plan(folder, config, tensors, chosen)


@dataclass(frozen=True)
class _Work:
    scheme: Scheme
    layers: set[str]
    room_bytes: int  # for a shard of the result, and as much again for temporaries


def _check_shapes(folder: Path, tensors: dict[str, TensorInfo], layers: set[str], scheme: Scheme) -> None:
    for layer in sorted(layers) if scheme == "int4" else []:
        num_columns = tensors[f"{layer}.weight"].shape[1]
        if num_columns % GROUP:
            raise CheckpointError(
                f"{folder}: {layer} has rows of {num_columns} weights, which is no multiple of the group size {GROUP}; "
                "use int8."
            )


def _ignored(config: ModelConfig, chosen: set[str]) -> list[str]:
    """The linear layers that are not quantized, for config.json."""
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    names = [f"model.layers.{index}.{part}" for index in range(config.num_hidden_layers) for part in parts]
    return ["lm_head", *(name for name in names if name not in chosen)]


def _write_shards(aside: Path, tensors: dict[str, TensorInfo], work: _Work) -> int:
    """Write the tensors in shards, and name the files once their number is known; returns the bytes written."""
    parts: list[tuple[Path, list[str]]] = []
    num_bytes = 0
    for shard in _shards(_quantized(tensors, work), work.room_bytes):
        file = aside / f"part-{len(parts)}"
        save_tensors(shard, file)
        parts.append((file, list(shard)))
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(parts, 1):
        name = SINGLE if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        file.rename(aside / name)
        weight_map |= dict.fromkeys(names, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (aside / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return num_bytes


def _quantized(tensors: dict[str, TensorInfo], work: _Work) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(tensors):
        layer = name.removesuffix(".weight")
        if layer in work.layers:
            for part, packed in _pack_in_parts(tensor, work).items():
                yield f"{layer}.{part}", packed
        else:
            yield name, tensor.to(_KEPT_DTYPE)


def _pack_in_parts(weight: Tensor, work: _Work) -> dict[str, Tensor]:
    """Quantize a weight some rows at a time, to bound memory; in every scheme rows are independent."""
    num_rows = max(work.room_bytes // (_WORKING_BYTES * weight.shape[1]), 1)
    parts = [pack_layer(rows, work.scheme) for rows in weight.split(num_rows)]
    packed = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    if "weight_shape" in packed:
        packed["weight_shape"] = torch.tensor(weight.shape)
    return packed


def _shards(tensors: Iterator[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    used = 0
    for name, tensor in tensors:
        if shard and used + tensor.nbytes > max_bytes:
            yield shard
            shard, used = {}, 0
        shard[name] = tensor
        used += tensor.nbytes
    yield shard


def _write_config(aside: Path, folder: Path, scheme: Scheme, ignored: list[str]) -> None:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values |= {
        "dtype": str(_KEPT_DTYPE).removeprefix("torch."),
        "quantization_config": quantization_config(ignored, scheme),
    }
    values.pop("torch_dtype", None)
    (aside / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _copy_companions(aside: Path, folder: Path) -> None:
    """Copy the files of the tokenizer and the generation settings."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".model", ".jinja") and file.name not in (INDEX, "config.json"):
            shutil.copyfile(file, aside / file.name)
