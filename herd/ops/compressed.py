"""Quantized weights on disk: compressed-tensors' formats, which `transformers` and vLLM read.

Three schemes: `int8` (a scale per row, all linear layers of the blocks), `int4` (a scale per 32 weights, the same
layers) and `fp8` (a scale per row, dynamically quantized activations; only the feed-forward layers, without those of
the first and last block, as in the Llama 3 paper, section 6.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.errors import CheckpointError
from herd.ops.fp8 import Fp8Linear, quantize_fp8
from herd.ops.quantized import (
    GROUP,
    Int4Linear,
    QuantizedLinear,
    pair_nibbles,
    quantize_groups,
    quantize_rows,
    unpack_nibbles,
)

Scheme = Literal["int8", "int4", "fp8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

LAYERS: dict[Scheme, type[nn.Module]] = {"int8": QuantizedLinear, "int4": Int4Linear, "fp8": Fp8Linear}
"""The layer class of each scheme."""

_METHOD = "compressed-tensors"
_FORMATS = {"int8": "pack-quantized", "int4": "pack-quantized", "fp8": "float-quantized"}
_BITS = {"int8": 8, "int4": 4}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.\w+_proj")


def takes(scheme: Scheme, name: str, num_layers: int) -> bool:
    """Whether a scheme quantizes the linear layer of this name."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return False
    return scheme != "fp8" or (match[2] == "mlp" and 0 < int(match[1]) < num_layers - 1)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def pack(weight: Tensor, bits: int = 8) -> Tensor:
    """int8 (N, K) of `bits` bits -> int32 (N, ceil(K * bits / 32)): the first weight in the lowest bits, unsigned."""
    per_word, offset = 32 // bits, 2 ** (bits - 1)
    padded = F.pad(weight, (0, -weight.shape[1] % per_word)).to(torch.int16) + offset
    if bits == 4:
        padded = padded[:, 0::2] | padded[:, 1::2] << 4
    return padded.to(torch.uint8).view(torch.int32)


def unpack(packed: Tensor, num_columns: int, bits: int = 8) -> Tensor:
    """The inverse of `pack`: int32 (N, ceil(K * bits / 32)) -> int8 (N, K)."""
    unsigned = packed.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=-1).flatten(1)
        return (unsigned[:, :num_columns] - 8).view(torch.int8)  # wraps around below zero
    return unsigned[:, :num_columns].bitwise_xor(128).view(torch.int8)  # subtracting 128 flips the highest bit


def packed_layers(names: Iterable[str]) -> list[str]:
    """The quantized layers of a checkpoint, by its tensor names."""
    return [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]


def packed_shapes(num_rows: int, num_columns: int, scheme: Scheme = "int8") -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors on disk for one layer's weight (N, K)."""
    if scheme == "fp8":
        return {"weight": (num_rows, num_columns), "weight_scale": (num_rows, 1)}
    return {
        "weight_packed": (num_rows, -(-num_columns * _BITS[scheme] // 32)),
        "weight_scale": (num_rows, num_columns // GROUP if scheme == "int4" else 1),
        "weight_shape": (2,),
    }


def pack_layer(weight: Tensor, scheme: Scheme = "int8") -> dict[str, Tensor]:
    """Quantize a weight (N, K) to its tensors on disk."""
    if scheme == "fp8":
        rounded, factor = quantize_fp8(weight)
        return {"weight": rounded, "weight_scale": factor[:, None]}
    shape = torch.tensor(weight.shape)
    if scheme == "int4":
        nibbles, scale = quantize_groups(weight)
        packed = pack(unpack_nibbles(nibbles)[:, : weight.shape[1]], 4)
        return {"weight_packed": packed, "weight_scale": scale[:, : weight.shape[1] // GROUP], "weight_shape": shape}
    rounded, scale = quantize_rows(weight)
    return {"weight_packed": pack(rounded), "weight_scale": scale[:, None], "weight_shape": shape}


def unpack_tensors(tensors: dict[str, Tensor], scheme: Scheme | None = "int8") -> dict[str, Tensor]:
    """A quantized checkpoint's tensors in the layers' layout in memory; other tensors are unchanged."""
    state = dict(tensors)
    if scheme is None:
        return state
    for layer in packed_layers(tensors):
        scale = state[f"{layer}.weight_scale"]
        if scheme == "fp8":
            state[f"{layer}.weight_scale"] = scale.flatten().float()
            continue
        _, num_columns = state.pop(f"{layer}.weight_shape").tolist()
        packed = state.pop(f"{layer}.weight_packed")
        if scheme == "int8":
            state[f"{layer}.weight"] = unpack(packed, num_columns)
            state[f"{layer}.weight_scale"] = scale.flatten().to(torch.bfloat16)
        else:
            missing = -num_columns % (2 * GROUP)
            in_order = F.pad(packed.contiguous().view(torch.uint8), (0, missing // 2), value=0x88)  # 0x8 is a zero
            state[f"{layer}.weight"] = pair_nibbles(in_order)
            state[f"{layer}.weight_scale"] = F.pad(scale.to(torch.bfloat16), (0, missing // GROUP))
    return state


def empty_like(module: nn.Module, scheme: Scheme = "int8") -> nn.Module:
    """An uninitialized quantized layer of the same shape on the same device."""
    return LAYERS[scheme](module.in_features, module.out_features, device=module.weight.device)


# ---- config.json -----------------------------------------------------------------------------------------------------


def quantization_config(ignored: Iterable[str], scheme: Scheme = "int8") -> dict[str, Any]:
    """The entry of a scheme in `config.json`, as in compressed-tensors."""
    group = {
        "targets": ["Linear"],
        "weights": _weights(scheme),
        "input_activations": _activations() if scheme == "fp8" else None,
        "output_activations": None,
    }
    return {
        "quant_method": _METHOD,
        "format": _FORMATS[scheme],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignored),
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": _BITS.get(scheme, 8),
        "type": "float" if scheme == "fp8" else "int",
        "symmetric": True,
        "strategy": "group" if scheme == "int4" else "channel",
        "group_size": GROUP if scheme == "int4" else None,
        "dynamic": False,
    }


def _activations() -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}


def check_quantization(config: dict[str, Any] | None, where: object) -> Scheme | None:
    """The scheme of a checkpoint, None if it is not quantized.

    Raises:
        CheckpointError: its weights are quantized, but not as by `herd quantize`.
    """
    if config is None or (scheme := scheme_of(config)) is not None:
        return None if config is None else scheme
    raise CheckpointError(
        f"{where}: its weights are quantized as {config.get('quant_method')}/{config.get('format')}, which is not "
        f"supported here; expected {_METHOD} with int8 or FP8 by rows or int4 in groups of {GROUP}, symmetric. Use "
        "the original weights, or run `herd quantize` on them."
    )


def scheme_of(config: dict[str, Any]) -> Scheme | None:
    """The scheme of a configuration as `herd quantize` writes it; None if it is another."""
    groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, dict)]
    for scheme in SCHEMES:
        named = (config.get("quant_method"), config.get("format")) == (_METHOD, _FORMATS[scheme])
        if named and groups and all(_matches(group, scheme) for group in groups):
            return scheme
    return None


def _matches(group: dict[str, Any], scheme: Scheme) -> bool:
    weights, wanted = group.get("weights") or {}, _weights(scheme)
    names = ("num_bits", "type", "symmetric", "strategy") + (("group_size",) if scheme == "int4" else ())
    return all(weights.get(name) == wanted[name] for name in names) and (
        (group.get("input_activations") or {}).get("dynamic", False) is True
        if scheme == "fp8"
        else not group.get("input_activations")
    )
