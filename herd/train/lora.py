"""Low-rank adapters (LoRA), also over a 4-bit base (QLoRA), for every objective.

Each target matrix W is frozen, and B A of rank r is learned: y = W x + alpha / r * B (A x). B is initialized to zero,
so that training starts at the base model. Adapters are saved in PEFT's format, and merged into the weights on export.

Source: Hu et al. 2021 (LoRA); Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from herd.config import settings
from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import save_weights
from herd.formats.safetensors import save_tensors
from herd.model.config import GENERATION, ModelConfig
from herd.model.llama import Llama, LlamaForCausalLM, empty_model
from herd.ops.nf4 import Nf4, dequantize, nf4_linear, quantize
from herd.run import atomic_folder
from herd.tokenizer.io import save_tokenizer

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."  # PEFT's name for the model inside
_NOT_READ = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
_MODULES = {"model.embed_tokens.weight": "embed_tokens", "lm_head.weight": "lm_head"}
_SCORES = ("score", "classifier")  # PEFT names a head that scores by both, whichever the model has


@settings
class LoraSettings:
    """Learn low-rank adapters instead of the weights themselves."""

    rank: int = 0
    """Rank of the adapters; 0: no adapters, all weights are learned."""
    alpha: float = 16.0
    """The adapters' output is multiplied by alpha / rank."""
    targets: list[Target] = field(default_factory=lambda: list(TARGETS))
    """Matrices of each block that get an adapter."""
    base: Literal["as_is", "nf4"] = "as_is"
    """How the frozen matrices are stored: in the model's dtype, or in 4 bits (QLoRA)."""
    dropout: float = 0.0
    """Dropout (0 to 1) of the adapters' inputs during training."""
    modules_to_save: list[Literal["embed_tokens", "lm_head"]] = field(default_factory=list)
    """Modules trained in full beside the adapters, embedding or head, as new tokens need it."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError("rank must be 0 or more and alpha positive")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be at least 0 and less than 1")
        if not self.rank and (self.dropout or self.modules_to_save):
            raise ValueError("dropout and modules_to_save need adapters: set rank too")
        if self.rank and not self.targets:
            raise ValueError("targets must name at least one matrix")


class LoraLinear(nn.Module):
    """A frozen linear layer plus a low-rank adapter, which `fresh_adapters` initializes."""

    packed: Tensor
    scales: Tensor
    weight: nn.Parameter | None

    def __init__(self, base: nn.Linear, options: LoraSettings) -> None:
        super().__init__()
        weight, rank = base.weight.detach(), options.rank
        self.scale, self.shape, self.dtype = options.alpha / rank, tuple(weight.shape), weight.dtype
        self.dropout = options.dropout
        if options.base == "nf4":
            packed = quantize(weight)
            self.register_buffer("packed", packed.packed, persistent=False)
            self.register_buffer("scales", packed.scales, persistent=False)
            self.weight = None
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = base.bias
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(weight.new_empty(weight.shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            base = nf4_linear(x, Nf4(self.packed, self.scales, self.shape))
        else:
            base = F.linear(x, self.weight)
        if self.bias is not None:
            base = base + self.bias
        kept = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return base + F.linear(F.linear(kept, self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of an equivalent plain linear layer (a 4-bit base is dequantized)."""
        base: Tensor | None = self.weight
        if base is None:
            base = dequantize(self.packed, self.scales, self.shape, torch.float32)
        return (base.float() + self.scale * self.lora_B.float() @ self.lora_A.float()).to(self.dtype)


def adapter_parameters(config: ModelConfig, options: LoraSettings) -> int:
    """How many parameters are trained: the adapters of a model of this shape, and its `modules_to_save`."""
    shapes = matrix_shapes(config)
    whole = len(set(options.modules_to_save))
    whole = min(whole, 1) if config.tie_word_embeddings else whole
    beside = whole * config.vocab_size * config.hidden_size
    return beside + options.rank * config.num_hidden_layers * sum(sum(shapes[name]) for name in set(options.targets))


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix of a block."""
    width, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "gate_proj": (wide, width),
        "up_proj": (wide, width),
        "down_proj": (width, wide),
    }


def adapt(model: Llama, options: LoraSettings, device: torch.device | str | None = None) -> None:
    """Freeze a Llama and add uninitialized adapters to its target matrices, in place.

    A score head and `modules_to_save` are trained in full. With `device` the matrices are moved there one by one, so
    that those of a 4-bit base are never all there unquantized.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.model.layers:
        for parent in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name in [name for name, _ in parent.named_children() if name in options.targets]:
                setattr(parent, name, LoraLinear(getattr(parent, name).to(device), options))
    for learned in _whole(model, options.modules_to_save):
        model.get_parameter(learned).requires_grad_(True)


def _whole(model: Llama, modules: Sequence[str]) -> dict[str, str]:
    """The weights trained in full, with PEFT's name of their module; a tied embedding is also the head."""
    found = {"score.weight": "score"} if hasattr(model, "score") else {}
    tied = modules and model.config.tie_word_embeddings
    here = {name: module for name, module in _MODULES.items() if tied or module in modules}
    return found | {name: module for name, module in here.items() if module != "lm_head" or not found}


@torch.no_grad()
def add_adapters(model: Llama, options: LoraSettings, seed: int = 0, device: torch.device | str | None = None) -> None:
    """`adapt` a Llama and initialize its adapters."""
    adapt(model, options, device)
    for name, drawn in fresh_adapters(model, seed):
        model.get_parameter(name).copy_(drawn)


def fresh_adapters(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Initial values of the adapters, one by one, in the model's dtype; of `model` only names and shapes are used."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(".lora_A"):
            bound = 1 / math.sqrt(parameter.shape[1])  # as in PEFT: Kaiming uniform with a = sqrt 5
            drawn = torch.empty(parameter.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            yield name, drawn.to(parameter.dtype)
        elif name.endswith(".lora_B"):
            yield name, torch.zeros(parameter.shape, dtype=parameter.dtype)


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def has_4_bits(model: nn.Module) -> bool:
    """Whether the base of the adapters is stored in 4 bits."""
    return any(isinstance(module, LoraLinear) and module.weight is None for module in model.modules())


def merged_model(model: Llama) -> Llama:
    """The equivalent of a Llama with adapters as a plain one in memory; weights without an adapter are shared."""
    plain = empty_model(model.config)
    weights = {name: _merged(model, name).to(_part(model, name).dtype) for name in plain.state_dict()}
    plain.load_state_dict(weights, assign=True)
    if isinstance(plain, LlamaForCausalLM):
        plain.tie_weights()
    return plain.eval()


def save_merged(model: Llama, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write a Llama with merged adapters as a plain one; matrices are merged file by file, to save memory."""
    plain = empty_model(model.config).state_dict()
    like = {name: weight.to(_part(model, name).dtype) for name, weight in plain.items()}
    save_weights(model.config, like, partial(_merged, model), folder, tokenizer)


def save_adapters(model: Llama, folder: Path, base: str = "", tokenizer: Tokenizer | None = None) -> Path:
    """Write the adapters, and a score head, in PEFT's format (`adapter_config.json`, `adapter_model.safetensors`).

    `base` names the base model. With a `tokenizer` its files are written too, and the current `eos_token_id`.
    """
    tensors, adapted = {}, {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}
    for name, module in adapted.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = module.lora_A.detach().clone()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = module.lora_B.detach().clone()
    rank = len(module.lora_A)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": module.scale * rank,
        "lora_dropout": module.dropout,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name in adapted}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    learned = [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name]
    whole = _whole(model, [module for name, module in _MODULES.items() if name in learned])
    tensors |= {_PREFIX + name: model.get_parameter(name).detach().clone() for name in whole}
    config |= {"task_type": "SEQ_CLS"} if hasattr(model, "score") else {}
    config |= {"modules_to_save": list(whole.values())} if whole else {}
    with atomic_folder(folder) as aside:
        save_tensors(tensors, aside / "adapter_model.safetensors")
        (aside / "adapter_config.json").write_text(json.dumps(config, indent=1))
        if tokenizer is not None:
            save_tokenizer(tokenizer, aside)
            ends = model.config.generation_config() or {"eos_token_id": model.config.eos_token_id}
            (aside / GENERATION).write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
    return folder


def load_adapters(model: Llama, folder: Path) -> LoraSettings:
    """Load saved adapters (ours or PEFT's) into a plain Llama, in place; returns their settings.

    Raises:
        CheckpointError: adapters are missing, damaged, made for another model shape, or not plain LoRA.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        rank, alpha, targets = config["r"], float(config["lora_alpha"]), list(config["target_modules"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not an adapter folder in PEFT's format ({error})") from None
    _check_plain(model, folder, config)
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise ConfigError(f"{folder}: adapts {', '.join(unknown)}; a Llama's blocks have {', '.join(TARGETS)}")
    modules = [name for name in config.get("modules_to_save") or () if name not in _SCORES]
    dropout = float(config.get("lora_dropout") or 0.0)
    options = LoraSettings(rank=rank, alpha=alpha, targets=targets, dropout=dropout, modules_to_save=modules)
    add_adapters(model, options)
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            for part in ("lora_A", "lora_B"):
                _fill(getattr(module, part), tensors.get(f"{_PREFIX}{name}.{part}.weight"), f"{name}.{part}", folder)
    for name in _whole(model, modules) if config.get("modules_to_save") else ():
        _fill(model.get_parameter(name), tensors.get(_PREFIX + name), name, folder)
    return options


def _check_plain(model: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Refuse adapters with features that would be ignored."""
    other = [name for name in _NOT_READ if config.get(name)] + ["bias"] * (config.get("bias", "none") != "none")
    read = {"embed_tokens", "lm_head"} | set(_SCORES if hasattr(model, "score") else ())
    whole = set(config.get("modules_to_save") or ()) - read
    if other := other + ["modules_to_save"] * bool(whole):
        raise CheckpointError(f"{folder}: {', '.join(other)} is not supported; expected a plain LoRA adapter")


@torch.no_grad()
def _fill(parameter: Tensor, found: Tensor | None, name: str, folder: Path) -> None:
    if found is None or found.shape != parameter.shape:
        shape = None if found is None else tuple(found.shape)
        raise CheckpointError(f"{folder}: `{name}` has shape {shape}; this model needs {tuple(parameter.shape)}")
    parameter.copy_(found)


def _part(model: nn.Module, name: str) -> LoraLinear | nn.Parameter:
    """The holder of a weight of the plain Llama: a layer with an adapter, or the parameter itself."""
    module = model.get_submodule(name.rpartition(".")[0])
    return module if isinstance(module, LoraLinear) and name.endswith(".weight") else model.get_parameter(name)


def _merged(model: nn.Module, name: str) -> Tensor:
    part = _part(model, name)
    return part.merged() if isinstance(part, LoraLinear) else part.detach()
