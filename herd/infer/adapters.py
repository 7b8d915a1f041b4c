"""LoRA adapters: several over one base model, each request with its own.

A layer's weight W becomes W + scale * B A, with A (r, K) and B (N, r). The sum is never computed, so that requests with
and without adapters share a step. Folders are PEFT's (`adapter_config.json`, `adapter_model.safetensors`).

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from herd.errors import CheckpointError
from herd.model.llama import Llama, LlamaForCausalLM

_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+)\.lora_([AB])(?:\.\w+)?\.weight"
)
_NOT_READ = (
    *("use_dora", "use_qalora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Prefixes of `init_lora_weights` methods that also change the base model's weights, which stay as they are here."""


@dataclass
class _Rows:
    """Which tokens of the step belong to which adapter; set before each step, read by every adapted layer."""

    places: dict[str, Tensor] = field(default_factory=dict)  # name -> (T',) int64


class AdaptedLinear(nn.Module):
    """A linear layer with the adapters that change it."""

    def __init__(self, base: nn.Module, rows: _Rows) -> None:
        super().__init__()
        self.base, self._rows = base, rows
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}  # name -> A (r, K), scale * B (N, r)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        for name, places in self._rows.places.items():
            if name in self._parts:
                down, up = self._parts[name]
                out[0].index_add_(0, places, x[0, places] @ down.T @ up.T)
        return out

    def add(self, name: str, down: Tensor, up: Tensor) -> None:
        """Add an adapter under a name."""
        self._parts[name] = down, up


class Adapters:
    """The adapters of one model, by name."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model, self._rows = model, _Rows()
        self._names: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """In the order they were added."""
        return tuple(self._names)

    def add(self, name: str, folder: Path | str) -> None:
        """Open a PEFT folder under a name.

        Raises:
            CheckpointError: it is missing or damaged, does not fit the model, or is not plain LoRA.
        """
        folder = Path(folder)
        if name in self._names:
            raise CheckpointError(f"an adapter named {name} is loaded already; choose another name")
        parts, scale = _read(folder)
        for layer, (down, up) in parts.items():
            _check_shape(self._model, folder, layer, down, up)
        weight = self._model.model.norm.weight
        ready = {layer: (down.to(weight), (scale * up.float()).to(weight)) for layer, (down, up) in parts.items()}
        for layer, pair in ready.items():
            if not all(part.isfinite().all() for part in pair):
                raise CheckpointError(f"{folder}: its update of {layer} is beyond the range of {weight.dtype}.")
        for layer, pair in ready.items():
            self._adapted(layer).add(name, *pair)
        self._names.append(name)

    def assign(self, names: Sequence[str | None]) -> None:
        """Set which adapter each token of the next step uses: (T,)."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if name is not None:
                places.setdefault(name, []).append(place)
        device = self._model.model.norm.weight.device
        self._rows.places = {name: torch.tensor(rows, device=device) for name, rows in places.items()}

    def _adapted(self, layer: str) -> AdaptedLinear:
        base = self._model.get_submodule(layer)
        if isinstance(base, AdaptedLinear):
            return base
        adapted = AdaptedLinear(base, self._rows)
        self._model.set_submodule(layer, adapted)
        return adapted


@torch.no_grad()
def merge(model: Llama, folder: Path) -> None:
    """Merge a PEFT folder into the weights of a plain model, in place; the sum is rounded to their dtype.

    Raises:
        CheckpointError: it is missing or damaged, does not fit the model, or is not plain LoRA.
    """
    parts, scale = _read(folder)
    for layer, (down, up) in parts.items():
        _check_shape(model, folder, layer, down, up)
    for layer, (down, up) in parts.items():
        module = model.get_submodule(layer)
        weight = module.get_parameter("weight")
        change = scale * (up.to(weight.device).float() @ down.to(weight.device).float())
        merged = (weight.float() + change).to(weight.dtype)
        if not merged.isfinite().all():
            raise CheckpointError(f"{folder}: its update of {layer} is beyond the range of {weight.dtype}.")
        module.register_parameter("weight", nn.Parameter(merged))  # the weights themselves may be mapped from a file


def _check_shape(model: nn.Module, folder: Path, layer: str, down: Tensor, up: Tensor) -> None:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        raise CheckpointError(f"{folder}: the model has no layer {layer}; was the adapter made for it?") from None
    base = module.base if isinstance(module, AdaptedLinear) else module
    if (down.shape[1], up.shape[0]) != (base.in_features, base.out_features) or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{folder}: its update of {layer} is {up.shape[0]} x {down.shape[1]}, but the layer is "
            f"{base.out_features} x {base.in_features}; the adapter was made for another model."
        )


def _read(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Each layer's A and B, and the factor of their product."""
    config = _read_config(folder)
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors, so the adapter would change nothing.")
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{folder}: {name} is not a LoRA matrix of an attention or MLP layer.")
        _check_tensor(file, name, tensor)
        halves.setdefault(match[1], {})[match[2]] = tensor
    for layer, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"{folder}: {layer} needs both lora_A and lora_B, but has only lora_{min(pair)}.")
    rank, alpha = config["r"], config["lora_alpha"]
    other = next((layer for layer, pair in halves.items() if pair["A"].shape[0] != rank), None)
    if other is not None:
        raise CheckpointError(
            f"{file}: {other} has rank {halves[other]['A'].shape[0]}, but adapter_config.json says r={rank}."
        )
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return {layer: (pair["A"], pair["B"]) for layer, pair in halves.items()}, scale


def _check_tensor(file: Path, name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or not tensor.is_floating_point():
        kind = f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
        raise CheckpointError(f"{file}: {name} is {kind}; expected a matrix of floating-point numbers.")
    if not tensor.double().isfinite().all():  # PyTorch has no isfinite for 8-bit floats
        raise CheckpointError(f"{file}: {name} holds values that are not finite (NaN or infinity).")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, rank, alpha = config.get("peft_type"), config["r"], config["lora_alpha"]
        usable = not isinstance(rank, bool) and rank == int(rank) > 0
        usable = usable and not isinstance(alpha, bool) and math.isfinite(alpha)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{file} is missing: a PEFT folder holds adapter_config.json and adapter_model.safetensors."
        ) from None
    except (OSError, OverflowError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected a PEFT adapter's settings, with r and lora_alpha ({error})") from None
    wrong = [name for name in _NOT_READ if config.get(name)]
    wrong += [] if config.get("use_rslora") in (None, True, False) else ["a use_rslora that is not true or false"]
    if kind != "LORA" or not usable or config.get("bias", "none") != "none" or wrong:
        what = ", ".join(wrong) or f"peft_type {kind}, r {rank}, lora_alpha {alpha}, bias {config.get('bias')}"
        raise CheckpointError(f"{file}: {what} is not supported; expected a plain LoRA adapter.")
    _check_initialization(file, config.get("init_lora_weights"))
    return config


def _check_initialization(file: Path, method: Any) -> None:
    if isinstance(method, str) and method.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights is {method}, which also changes the base model's weights; save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion, which converts it to plain LoRA."
        )
