"""Hugging Face's folders: config.json and safetensors, whole, quantized, or as 8-bit floats with scales."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.folder import mapped, read_tensors
from herd.formats.safetensors import TensorInfo
from herd.formats.stored import StoredTensor, StoredWeights, check_finite, check_fit, some_tensors
from herd.model.config import ModelConfig
from herd.model.llama import Attend, Llama, empty_model
from herd.ops.compressed import Scheme, check_quantization, empty_like, packed_layers, packed_shapes, unpack_tensors
from herd.ops.quantized import replace_linears

_FP8_METHODS = ("fbgemm_fp8", "fp8")  # Meta's own 405B; what `herd quantize` writes computes as it is
_SCALE = "_scale"


def load_huggingface(
    folder: Path,
    config: ModelConfig,
    tensors: dict[str, TensorInfo],
    dtype: torch.dtype | None,
    device: str,
    attend: Attend | None,
) -> Llama:
    """A folder's model with its weights as they lie there, mapped where they can be; quantized layers stay quantized.

    Raises:
        CheckpointError: the tensors do not fit config.json or are not finite.
    """
    tensors = without_leftovers(tensors, config)
    scheme = check_quantization(config.quantization_config, folder)
    model = empty_model(config, attend)
    quantized = packed_layers(tensors) if scheme else []
    _check_fit(folder, tensors, model, quantized, scheme)
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
            f"{tensors[name].file}: tensor {name} holds whole numbers ({kind}), expected floats: its config.json names "
            "no quantization that is read."
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


# ---- piece by piece --------------------------------------------------------------------------------------------------


def open_huggingface(folder: Path, config: ModelConfig, tensors: dict[str, TensorInfo]) -> StoredWeights:
    """A folder of safetensors; 8-bit floats are multiplied by their scales as they are read.

    Raises:
        CheckpointError: the tensors do not fit config.json, or the weights are integers.
    """
    tensors = without_leftovers(tensors, config)
    if holds_packed(tensors):
        raise CheckpointError(f"{folder} is quantized already; give the original weights.")
    stored = {
        name: _stored(name, info, _scale_of(name, tensors))
        for name, info in tensors.items()
        if not name.endswith((_SCALE, "input_scale_ub"))
    }
    return check_fit(StoredWeights(folder, "huggingface", config, stored), "config.json")


def without_leftovers(tensors: dict[str, TensorInfo], config: ModelConfig) -> dict[str, TensorInfo]:
    """Drop what old exporters wrote beside the weights: rotary tables, and the second name of a tied embedding."""
    return {
        name: info
        for name, info in tensors.items()
        if not name.endswith("rotary_emb.inv_freq") and not (name == "lm_head.weight" and config.tie_word_embeddings)
    }


def holds_packed(tensors: dict[str, TensorInfo]) -> bool:
    """Whether the weights are whole numbers with scales (`herd quantize`)."""
    return not all(info.dtype.is_floating_point for info in tensors.values())


def holds_fp8(config: ModelConfig, tensors: dict[str, TensorInfo]) -> bool:
    """Whether the weights are 8-bit floats with scales, which are read as bfloat16."""
    method = (config.quantization_config or {}).get("quant_method")
    return method in (None, *_FP8_METHODS) and any(
        info.dtype.is_floating_point and info.dtype.itemsize == 1 for info in tensors.values()
    )


def _scale_of(name: str, tensors: dict[str, TensorInfo]) -> tuple[str, TensorInfo] | None:
    if tensors[name].dtype.itemsize > 1:
        return None
    key = name + _SCALE
    if key not in tensors:
        return None
    rows, info = tensors[name].shape[0], tensors[key]
    if info.shape not in ((), (1,), (rows,), (rows, 1)):
        raise CheckpointError(
            f"{info.file}: tensor {key} has the shape {list(info.shape)}; read are scales of a whole tensor or of each "
            "row."
        )
    return key, info


def _stored(name: str, info: TensorInfo, scale: tuple[str, TensorInfo] | None) -> StoredTensor:
    def rows(begin: int, end: int) -> Tensor:
        taken = mapped(info.file, name)[begin:end]
        if scale is None:
            return taken if info.dtype.itemsize > 1 else taken.bfloat16()
        factors = mapped(scale[1].file, scale[0]).float().reshape(-1, 1)
        return (taken.float() * (factors[begin:end] if len(factors) > 1 else factors)).bfloat16()

    num_bytes = torch.Size(info.shape).numel() * info.dtype.itemsize
    return StoredTensor(name, str(info.dtype).removeprefix("torch."), info.shape, num_bytes, info.file, rows)
