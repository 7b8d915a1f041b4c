"""Quantizing a checkpoint folder: int8 weights, tensor by tensor, whatever the size of the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from herd.errors import CheckpointError
from herd.model.checkpoint import find_checkpoint
from herd.model.config import CAUSAL_LM, ModelConfig
from herd.model.weights import INDEX, SINGLE, TensorInfo, read_tensors, tensors_in_folder
from herd.ops.quantized import pack_layer, quantization_config
from herd.run import atomic_folder

SHARD_BYTES = 1_000_000_000
"""Weights held in memory at a time, in bytes: one shard of the result."""

_KEPT_DTYPE = torch.bfloat16  # of what is not quantized
_LAYERS = "model.layers."


@dataclass(frozen=True)
class Quantized:
    """What quantizing changed. Sizes are bytes of the weights on disk."""

    bytes_before: int
    bytes_after: int
    num_layers: int  # linear layers that became int8
    largest_error: float  # of a weight, as a share of its row's largest one


def quantize_folder(source: Path | str, target: Path | str, bits: int = 8) -> Quantized:
    """Write an int8 copy of a checkpoint: every linear layer inside the blocks, one scale for each output row.

    Embedding, head and norms become bfloat16. At most one shard of the result is in memory at a time. The folder is in
    compressed-tensors' `pack-quantized` format, which `transformers` and vLLM read.

    Raises:
        CheckpointError: the source is missing, damaged, quantized already, or not a language model.
    """
    if bits != 8:
        raise CheckpointError(f"bits={bits}: only 8 is supported.")
    folder = find_checkpoint(source)
    config = ModelConfig.from_folder(folder)
    if config.quantization_config is not None:
        raise CheckpointError(f"{folder} is quantized already; give the original weights.")
    if config.architecture != CAUSAL_LM:
        raise CheckpointError(f"{folder} is a {config.architecture}; only language models are quantized.")
    tensors = tensors_in_folder(folder)
    errors: list[float] = []
    with atomic_folder(Path(target)) as aside:
        bytes_after = _write_shards(aside, tensors, errors)
        _write_config(aside, folder)
        _copy_companions(aside, folder)
    bytes_before = sum(info.dtype.itemsize * torch.Size(info.shape).numel() for info in tensors.values())
    return Quantized(bytes_before, bytes_after, len(errors), max(errors))


def _write_shards(aside: Path, tensors: dict[str, TensorInfo], errors: list[float]) -> int:
    """Write the tensors in shards as they come, name the files once their number is known; the bytes written."""
    parts: list[tuple[Path, list[str]]] = []
    num_bytes = 0
    for shard in _shards(_quantized(tensors, errors)):
        file = aside / f"part-{len(parts)}"
        save_file(shard, file, metadata={"format": "pt"})
        parts.append((file, list(shard)))
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
    weight_map = {}
    for number, (file, names) in enumerate(parts, 1):
        name = SINGLE if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        file.rename(aside / name)
        weight_map |= dict.fromkeys(names, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (aside / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return num_bytes


def _quantized(tensors: dict[str, TensorInfo], errors: list[float]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(tensors):
        if name.startswith(_LAYERS) and tensor.ndim == 2:
            parts = pack_layer(tensor)
            errors.append(_largest_error(tensor, parts["weight_scale"]))
            layer = name.removesuffix(".weight")
            yield from ((f"{layer}.{part}", packed.contiguous()) for part, packed in parts.items())
        else:
            yield name, tensor.to(_KEPT_DTYPE)


def _largest_error(weight: Tensor, scale: Tensor) -> float:
    """The largest rounding error of a weight, as a share of the largest weight of its row."""
    rows = weight.float()
    error = (rows - (rows / scale.float()).round() * scale.float()).abs().amax(dim=1)
    return float((error / rows.abs().amax(dim=1).clamp_min(1e-30)).max())


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    used = 0
    for name, tensor in tensors:
        if shard and used + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, used = {}, 0
        shard[name] = tensor
        used += tensor.nbytes
    yield shard


def _write_config(aside: Path, folder: Path) -> None:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values |= {
        "dtype": str(_KEPT_DTYPE).removeprefix("torch."),
        "quantization_config": quantization_config(ignored=["lm_head"]),
    }
    values.pop("torch_dtype", None)
    (aside / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _copy_companions(aside: Path, folder: Path) -> None:
    """The tokenizer and generation settings, as they are."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".model", ".jinja") and file.name not in (INDEX, "config.json"):
            shutil.copyfile(file, aside / file.name)
