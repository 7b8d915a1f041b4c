"""Hugging Face folders: config.json and weights, plain or quantized."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from herd.errors import CheckpointError
from herd.formats.folder import mapped, read_tensors, tensors_in_folder
from herd.formats.packed import unpacked, unpacks
from herd.formats.safetensors import TensorInfo
from herd.formats.stored import StoredWeights, check_finite, check_fit, some_tensors
from herd.model.config import ModelConfig
from herd.model.llama import Attend, Llama, empty_model
from herd.ops.compressed import Scheme, check_quantization, empty_like, packed_layers, packed_shapes, unpack_tensors
from herd.ops.quantized import replace_linears


def load_huggingface(
    folder: Path,
    config: ModelConfig,
    tensors: dict[str, TensorInfo],
    dtype: torch.dtype | None,
    device: str,
    attend: Attend | None,
) -> Llama:
    """Load a folder's model, with weights mapped if possible; layers quantized by `herd quantize` stay quantized.

    Raises:
        CheckpointError: the tensors do not fit config.json or are not finite.
    """
    tensors = without_leftovers(tensors, config)
    scheme = check_quantization(config.quantization_config, folder)
    model = empty_model(config, attend)
    quantized = packed_layers(tensors) if scheme else []
    _check_fit(folder, tensors, model, quantized, scheme)
    if scheme:
        replace_linears(model, quantized, partial(empty_like, scheme=scheme))
    weights = unpack_tensors(dict(read_tensors(tensors)), scheme)
    kept = {f"{layer}.{part}" for layer in quantized for part in ("weight", "weight_scale")}
    _check_floats(tensors, {name for name in weights if name not in kept and not weights[name].is_floating_point()})
    check_finite(folder, weights)
    weights = {name: tensor.to(device, None if name in kept else dtype) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    return model


def _check_floats(tensors: dict[str, TensorInfo], whole: set[str]) -> None:
    for name in sorted(whole):
        kind = str(tensors[name].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{tensors[name].file}: tensor {name} holds integers ({kind}), expected floats: its config.json names "
            "no supported quantization."
        )


def _check_fit(
    folder: Path, tensors: dict[str, TensorInfo], model: Llama, quantized: list[str], scheme: Scheme | None
) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for layer in quantized:
        if scheme and (shape := expected.pop(f"{layer}.weight", None)):
            num_rows, num_columns = shape
            packed = packed_shapes(num_rows, num_columns, scheme)
            expected |= {f"{layer}.{part}": whole for part, whole in packed.items()}
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


# ---- piece by piece --------------------------------------------------------------------------------------------------


def open_huggingface(folder: Path, config: ModelConfig, tensors: dict[str, TensorInfo]) -> StoredWeights:
    """A folder's tensors; weights quantized by other tools are dequantized as they are read.

    Raises:
        CheckpointError: the tensors do not fit config.json, or the weights are integers.
    """
    tensors = without_leftovers(tensors, config)
    if holds_packed(config, tensors, folder):
        raise CheckpointError(f"{folder} is quantized already; give the original weights.")
    return check_fit(StoredWeights(folder, "huggingface", config, unpacked(folder, config, tensors)), "config.json")


def without_leftovers(tensors: dict[str, TensorInfo], config: ModelConfig) -> dict[str, TensorInfo]:
    """Drop what old exporters also wrote: RoPE frequencies, and a tied embedding's second name."""
    return {
        name: info
        for name, info in tensors.items()
        if not name.endswith("rotary_emb.inv_freq") and not (name == "lm_head.weight" and config.tie_word_embeddings)
    }


def has_own_head(folder: Path) -> bool:
    """Whether a head is stored that differs from the embedding; False if the weights cannot be read."""
    names = ("lm_head.weight", "model.embed_tokens.weight")
    try:
        tensors = tensors_in_folder(folder)
        if not all(name in tensors for name in names):
            return False
        head, embedding = (mapped(tensors[name].file, name) for name in names)
    except CheckpointError:
        return False
    return head.shape != embedding.shape or not (torch.equal(head[:8], embedding[:8]) and torch.equal(head, embedding))


def holds_packed(config: ModelConfig, tensors: dict[str, TensorInfo], folder: Path) -> bool:
    """Whether the weights are integers with scales that the engine computes with (`herd quantize`)."""
    whole = not all(info.dtype.is_floating_point for info in tensors.values())
    return whole and not unpacks(config.quantization_config, tensors, folder)
