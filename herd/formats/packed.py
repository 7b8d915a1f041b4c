"""Weights quantized by other tools, dequantized as they are read: GPTQ, AWQ, compressed-tensors, FP8.

    GPTQ                qweight (K b/32, N), qzeros (G, N b/32), scales (G, N), g_idx (K): (q - zero) x scale of g_idx
    AWQ                 qweight (K, N/8), qzeros (G, N/8), scales (G, N); eight numbers of a word by _AWQ_ORDER
    compressed-tensors  weight_packed (N, K b/32) with weight_scale (N, G), or `weight` in 8 bits with its scales
    FP8                 weight (N, K) with weight_scale, for all, a row or a block; weight_scale_inv is multiplied too

Integers of b bits are packed in 32-bit words, the first in the lowest bits. Other kinds of quantization are refused by
name. Settings for quantized activations are ignored with a message: only weights are used.

Source: the packing of AutoGPTQ and AutoAWQ (`qlinear`), compressed-tensors' `pack_quantized`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.folder import mapped
from herd.formats.safetensors import TensorInfo
from herd.formats.stored import StoredTensor
from herd.log import say
from herd.model.config import ModelConfig
from herd.ops.compressed import scheme_of

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_GPTQ_BITS = (2, 3, 4, 8)
_COMPRESSED = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
    None,
)
_FOR_ACTIVATIONS = (
    "input_scale", "input_zero_point", "output_scale", "output_zero_point", "input_scale_ub", "activation_scale",
    "k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "q_zero_point",
)  # fmt: skip
_MAIN = ("qweight", "weight_packed", "weight")
_PARTS = ("qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape",
          "weight_g_idx")  # fmt: skip
_IN_WORDS = {
    "bitsandbytes": "by bitsandbytes (NF4 or int8)",
    "aqlm": "by AQLM (additive codebooks)",
    "hqq": "by HQQ",
    "eetq": "by EETQ (int8)",
    "quanto": "by Quanto",
    "torchao": "by torchao",
    "higgs": "by HIGGS",
    "bitnet": "as BitNet's ternary weights",
    "vptq": "by VPTQ (vector codebooks)",
    "spqr": "by SpQR",
    "exl2": "by ExLlamaV2 (EXL2)",
    "exl3": "by ExLlamaV3 (EXL3)",
    "mxfp4": "as MXFP4 blocks",
    "quark": "by AMD's Quark",
    "auto-round": "by AutoRound in a format of its own",
}

Rows = Callable[[int, int], Tensor]


def unpacks(quantization: dict[str, Any] | None, tensors: dict[str, TensorInfo], where: object) -> bool:
    """Whether weights must be dequantized; not if they are plain, or the engine computes with them as they are.

    Raises:
        CheckpointError: this kind of quantization is not supported.
    """
    if quantization is None:
        return any(info.dtype.is_floating_point and info.dtype.itemsize == 1 for info in tensors.values())
    if scheme_of(quantization) is not None:
        return False
    if (fault := _fault(quantization)) is not None:
        raise CheckpointError(
            f"{where}: its weights are quantized {fault}, which is not supported. Supported are GPTQ (2, 3, 4, 8 "
            "bits), AWQ (gemm), compressed-tensors (integers, FP8) and FP8 with scales; or use the original weights."
        )
    return True


def _fault(quantization: dict[str, Any]) -> str | None:
    """The unsupported kind of quantization, for a message; None if it is supported."""
    method, form = quantization.get("quant_method"), quantization.get("format")
    if method == "gptq":
        form, bits = quantization.get("checkpoint_format") or "gptq", quantization.get("bits")
        if form not in ("gptq", "gptq_v2") or quantization.get("is_marlin_format"):
            return f"by GPTQ and repacked for a kernel ({form})"
        return None if bits in _GPTQ_BITS else f"by GPTQ to {bits} bits"
    if method == "awq":
        form = str(quantization.get("version") or "gemm").lower()
        bits = quantization.get("bits") or quantization.get("w_bit")
        return None if (form, bits) == ("gemm", 4) else f"by AWQ ({form}, {bits} bits)"
    if method == "compressed-tensors":
        return None if form in _COMPRESSED else f"by compressed-tensors as {form}"
    if method == "modelopt":
        kind = quantization.get("quant_algo") or (quantization.get("quantization") or {}).get("quant_algo")
        return None if kind == "FP8" else f"by NVIDIA's ModelOpt as {kind}"
    if method in ("fp8", "fbgemm_fp8"):
        return None
    return _IN_WORDS.get(str(method)) or f"by a method named {method!r}"


def unpacked(folder: Path, config: ModelConfig, tensors: dict[str, TensorInfo]) -> dict[str, StoredTensor]:
    """A folder's tensors dequantized, under the names of an unquantized model.

    Raises:
        CheckpointError: a part of a weight is missing or has the wrong shape.
    """
    quantization = config.quantization_config or {}
    kept = {name: info for name, info in tensors.items() if not name.endswith(_FOR_ACTIVATIONS)}
    layers: dict[str, dict[str, TensorInfo]] = {}
    stored = {}
    for name, info in kept.items():
        layer, _, part = name.rpartition(".")
        if part in _PARTS or part in _MAIN:
            layers.setdefault(layer, {})[part] = info
        else:
            stored[name] = _plain(name, info)
    for layer, parts in layers.items():
        stored[f"{layer}.weight"] = _weight(folder, layer, parts, quantization)
    if quantization and not any(len(parts) > 1 for parts in layers.values()):
        raise CheckpointError(
            f"{folder}: its config.json says that the weights are quantized ({quantization.get('quant_method')}), but "
            "none is. Remove quantization_config if they are the original weights."
        )
    empty = [] if config.attention_bias and config.mlp_bias else [n for n in stored if _is_needless(n, stored, layers)]
    for name in empty:
        del stored[name]
    _report(folder, quantization, len(tensors) - len(kept), len(empty))
    return stored


def _report(folder: Path, quantization: dict[str, Any], for_activations: int, empty: int) -> None:
    groups = [group for group in (quantization.get("config_groups") or {}).values() if isinstance(group, dict)]
    if for_activations or any(group.get("input_activations") for group in groups):
        say(f"  {folder}: settings for quantized activations ({for_activations} scales) are ignored")
    if empty:
        say(f"  {folder}: {empty} biases are all zero, as written by AutoGPTQ, and are left out")


def _is_needless(name: str, stored: dict[str, StoredTensor], layers: dict[str, dict[str, TensorInfo]]) -> bool:
    """Whether a tensor is one of the zero biases that AutoGPTQ gives every layer."""
    layer, _, part = name.rpartition(".")
    return part == "bias" and "qweight" in layers.get(layer, {}) and not stored[name].rows(0, 2**31).any()


def _plain(name: str, info: TensorInfo) -> StoredTensor:
    def rows(begin: int, end: int) -> Tensor:
        return mapped(info.file, name)[begin:end]

    return StoredTensor(name, _kind(info), info.shape, _num_bytes([info]), info.file, rows)


def _kind(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")


def _num_bytes(parts: list[TensorInfo]) -> int:
    return sum(math.prod(info.shape) * info.dtype.itemsize for info in parts)


def _weight(folder: Path, layer: str, parts: dict[str, TensorInfo], quantization: dict[str, Any]) -> StoredTensor:
    main = next((part for part in _MAIN if part in parts), None)
    if main is None:
        raise CheckpointError(f"{folder}: {layer} has {', '.join(sorted(parts))}, but no weight.")
    read = _Reader(folder, layer, parts)
    if main == "qweight":
        kind, shape, rows = _awq(read) if quantization.get("quant_method") == "awq" else _gptq(read, quantization)
    elif main == "weight_packed":
        kind, shape, rows = _compressed(read, quantization)
    elif len(parts) == 1 and parts["weight"].dtype.is_floating_point and parts["weight"].dtype.itemsize > 1:
        return _plain(f"{layer}.weight", parts["weight"])
    else:
        kind, shape, rows = _scaled(read, quantization)
    return StoredTensor(f"{layer}.{main}", kind, shape, _num_bytes(list(parts.values())), parts[main].file, rows)


class _Reader:
    """The tensors that make up one quantized weight."""

    def __init__(self, folder: Path, layer: str, parts: dict[str, TensorInfo]) -> None:
        self.folder, self.layer, self.parts = folder, layer, parts

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def __call__(self, part: str) -> Tensor:
        return mapped(self.parts[part].file, f"{self.layer}.{part}")

    def shape(self, part: str) -> tuple[int, ...]:
        if part not in self.parts:
            raise CheckpointError(
                f"{self.folder} lacks {self.layer}.{part}, without which the weight cannot be dequantized."
            )
        return self.parts[part].shape

    def check(self, part: str, *wanted: tuple[int, ...]) -> tuple[int, ...]:
        found = self.shape(part)
        if found not in wanted:
            expected = " or ".join(str(list(shape)) for shape in wanted)
            raise CheckpointError(
                f"{self.parts[part].file}: tensor {self.layer}.{part} has the shape {list(found)}, expected {expected}."
            )
        return found


Unpacked = tuple[str, tuple[int, ...], Rows]


def _gptq(read: _Reader, quantization: dict[str, Any]) -> Unpacked:
    """GPTQ. Zero points are stored minus one, except in `gptq_v2`."""
    (num_words, num_rows), num_groups = read.shape("qweight"), read.shape("scales")[0]
    bits = quantization["bits"]
    if "g_idx" in read:  # layers may differ in bits
        bits = num_words * 32 // max(read.shape("g_idx")[0], 1)
    if bits not in _GPTQ_BITS:
        raise CheckpointError(
            f"{read.folder}: {read.layer} is quantized by GPTQ to {bits} bits, which is not supported."
        )
    columns = num_words * 32 // bits
    read.check("scales", (num_groups, num_rows))
    read.check("qzeros", (num_groups, -(-num_rows * bits // 32)))
    offset = 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1
    group = _groups(read, "g_idx", columns, num_groups)

    def rows(begin: int, end: int) -> Tensor:
        numbers = unpack_bits(read("qweight")[:, begin:end].T, bits, columns)
        zeros = unpack_bits(read("qzeros"), bits, num_rows)[:, begin:end] + offset & (1 << bits) - 1
        scales = read("scales")[:, begin:end].float()
        return (numbers - zeros.T[:, group]) * scales.T[:, group]

    return f"gptq_int{bits}", (num_rows, columns), rows


def _groups(read: _Reader, part: str, columns: int, num_groups: int) -> Tensor:
    """The group of each column: consecutive, or as recorded by `act-order`."""
    if part in read:
        read.check(part, (columns,))
        order = read(part).long()
        if int(order.min()) >= 0 and int(order.max()) < num_groups:
            return order
        if int(order.max()) >= num_groups:
            raise CheckpointError(f"{read.folder}: {read.layer}.{part} names group {int(order.max())} of {num_groups}.")
    return torch.arange(columns) // -(-columns // num_groups)


def _awq(read: _Reader) -> Unpacked:
    columns, num_words = read.shape("qweight")
    num_groups, num_rows = read.shape("scales")[0], num_words * 8
    read.check("scales", (num_groups, num_rows))
    read.check("qzeros", (num_groups, num_words))
    group = _groups(read, "", columns, num_groups)

    def rows(begin: int, end: int) -> Tensor:
        words, skip = slice(begin // 8, -(-end // 8)), begin % 8
        numbers, zeros = (_awq_numbers(read(part)[:, words])[:, skip:] for part in ("qweight", "qzeros"))
        scales = read("scales")[:, begin:end].float()
        length = end - begin
        return ((numbers[:, :length] - zeros[group, :length]) * scales[group]).T

    return "awq_int4", (num_rows, columns), rows


def _awq_numbers(words: Tensor) -> Tensor:
    shifts = torch.tensor([4 * _AWQ_ORDER.index(column) for column in range(8)], dtype=torch.int32)
    return (words[..., None] >> shifts & 15).flatten(1)


def _compressed(read: _Reader, quantization: dict[str, Any]) -> Unpacked:
    """compressed-tensors: integers offset by half their range, with a scale and perhaps a zero point for each group."""
    num_rows, num_words = read.shape("weight_packed")
    read.check("weight_shape", (2,))
    columns = int(read("weight_shape")[1])
    groups = (quantization.get("config_groups") or {}).values()
    named = {(group.get("weights") or {}).get("num_bits") for group in groups if isinstance(group, dict)}
    bits = next((b for b in sorted(b for b in named if b) if num_words == -(-columns * b // 32)), None)
    if bits is None:
        raise CheckpointError(
            f"{read.folder}: {read.layer} has {num_words} words for {columns} weights, which fits none of "
            f"{sorted(b for b in named if b)} bits."
        )
    num_groups = read.shape("weight_scale")[-1]
    read.check("weight_scale", (num_rows, num_groups))
    half, group = 1 << bits - 1, _groups(read, "weight_g_idx", columns, num_groups)
    if "weight_zero_point" in read:
        read.check("weight_zero_point", (-(-num_rows * bits // 32), num_groups))

    def rows(begin: int, end: int) -> Tensor:
        numbers = unpack_bits(read("weight_packed")[begin:end], bits, columns) - half
        if "weight_zero_point" in read:
            zeros = unpack_bits(read("weight_zero_point").T, bits, num_rows).T[begin:end] - half
            numbers = numbers - zeros[:, group]
        return numbers * read("weight_scale")[begin:end].float()[:, group]

    return f"int{bits}", (num_rows, columns), rows


def _scaled(read: _Reader, quantization: dict[str, Any]) -> Unpacked:
    """8-bit weights with one scale, a scale for each row or for each block, or none (then it is 1)."""
    info, part = read.parts["weight"], next((p for p in ("weight_scale", "weight_scale_inv") if p in read), None)
    if part is None and not info.dtype.is_floating_point:
        raise CheckpointError(
            f"{read.folder}: {read.layer}.weight holds integers ({_kind(info)}), but there are no scales."
        )
    num_rows, columns = info.shape
    blocks = _block(quantization)
    shape = tuple(-(-size // block) for size, block in zip(info.shape, blocks, strict=True))
    whole = [(), (1,), (1, 1), (num_rows,), (num_rows, 1)]
    found = read.check(part, *whole, shape) if part else ()
    by_block = found not in whole
    if "weight_zero_point" in read:
        read.check("weight_zero_point", *whole)

    def rows(begin: int, end: int) -> Tensor:
        numbers = read("weight")[begin:end].float()
        if "weight_zero_point" in read:
            numbers = numbers - _of_rows(read("weight_zero_point"), begin, end)
        if part is None:
            return numbers
        scales = read(part).float()
        if not by_block:
            return numbers * _of_rows(scales, begin, end)
        return numbers * scales[torch.arange(begin, end) // blocks[0]][:, torch.arange(columns) // blocks[1]]

    return _kind(info), info.shape, rows


def _of_rows(scales: Tensor, begin: int, end: int) -> Tensor:
    scales = scales.float().reshape(-1, 1)
    return scales[begin:end] if len(scales) > 1 else scales


def _block(quantization: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale: by default DeepSeek's 128 x 128."""
    groups = [g for g in (quantization.get("config_groups") or {}).values() if isinstance(g, dict)]
    found = [(group.get("weights") or {}).get("block_structure") for group in groups]
    block = quantization.get("weight_block_size") or next((b for b in found if b), None) or (128, 128)
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(isinstance(b, int) and b > 0 for b in block):
        raise CheckpointError(f"quantization_config: a block of {block!r}; expected two numbers, rows and columns.")
    return block[0], block[1]


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Unpack integers of `bits` bits from each row's words: int32 (N, W) -> int32 (N, count)."""
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        return (words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int32) & mask).flatten(1)[:, :count]
    places = torch.arange(count) * bits
    wide = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))  # one may span two words
    low, high = wide[:, places // 32] >> places % 32, wide[:, places // 32 + 1] << 32 - places % 32
    return ((low | high) & mask).int()
