"""Opening a checkpoint in any format, and saving one as a Hugging Face folder that other engines load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.errors import CheckpointError, ConfigError
from herd.formats.blocks import BLOCK_TYPES
from herd.formats.folder import tensors_in_folder
from herd.formats.gguf import GGUFFile, read_gguf
from herd.formats.gguf_model import open_gguf
from herd.formats.gguf_vocabulary import read_template, read_vocabulary
from herd.formats.huggingface import has_own_head, holds_packed, load_huggingface, open_huggingface
from herd.formats.meta import open_meta
from herd.formats.packed import unpacks
from herd.formats.places import Format, find_checkpoint, format_of
from herd.formats.safetensors import INDEX, SINGLE, TensorInfo, save_tensors
from herd.formats.stored import StoredWeights, check_finite
from herd.log import say
from herd.model.config import GENERATION, ModelConfig
from herd.model.llama import Attend, Llama, LlamaForCausalLM, empty_model
from herd.ops.blocks import BlockEmbedding, BlockLinear
from herd.run import atomic_folder
from herd.tokenizer.io import load_template, load_tokenizer, save_tokenizer
from herd.tokenizer.specials import END_OF_TURN
from herd.tokenizer.template import META_TEMPLATE
from herd.tokenizer.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in any format, made by `open_checkpoint`; its parts are read when first used."""

    place: Path
    """Its folder or file."""
    format: Format

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration.

        Raises:
            CheckpointError: it is damaged.
            ConfigError: it describes something other than a Llama.
        """
        if self.format != "huggingface":
            return self.weights.config
        config = ModelConfig.from_folder(self.place)
        if config.tie_word_embeddings and has_own_head(self.place):
            say(f"  {self.place}: config.json ties head and embedding, but another head is stored, which is used")
            return replace(config, tie_word_embeddings=False)
        return config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            DataError: it is missing, damaged or of a kind that is not supported.
        """
        if self.format == "gguf":
            return read_vocabulary(self._container)
        tokenizer = load_tokenizer(self.place)
        if self.format == "meta" and tokenizer.special.get(END_OF_TURN) in self.config.eos_token_ids:
            return tokenizer.with_template(META_TEMPLATE)  # Meta's files cannot store one
        return tokenizer

    @cached_property
    def chat_template(self) -> str | None:
        """Its chat template (Jinja), None if it has none.

        Raises:
            DataError: it is damaged.
        """
        return read_template(self._container) if self.format == "gguf" else load_template(self.place)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The content of its generation_config.json; empty if it is missing or not a JSON object."""
        try:
            values = json.loads((self.place / GENERATION).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    @cached_property
    def table(self) -> dict[str, TensorInfo]:
        """The tensors in the files of a Hugging Face folder, quantized or not.

        Raises:
            CheckpointError: it is in another format, or a file is missing or damaged.
        """
        if self.format != "huggingface":
            raise CheckpointError(
                f"{self.place} is not a Hugging Face folder; `herd convert {self.place} A-FOLDER` converts it to one."
            )
        return tensors_in_folder(self.place)

    @property
    def is_packed(self) -> bool:
        """Whether its weights are integers with scales, as from `herd quantize`; such weights are only loaded whole."""
        return self.format == "huggingface" and holds_packed(self.config, self.table, self.place)

    @cached_property
    def weights(self) -> StoredWeights:
        """Its tensors under Hugging Face's names, to be read in chunks.

        Raises:
            CheckpointError: a file is missing, damaged, or its tensors do not fit its configuration; or `is_packed`.
            ConfigError: it describes something other than a Llama.
        """
        if self.format in ("gguf", "meta"):
            stored = open_gguf(self._container) if self.format == "gguf" else open_meta(self.place)
            sources: dict[str, Any] = {"as_read": {}, "generation": self.generation or None}
            if self.format == "gguf":
                sources |= _original_configs(self._container, stored.config)
            return replace(stored, config=replace(stored.config, **sources))
        return open_huggingface(self.place, self.config, self.table)

    @cached_property
    def _container(self) -> GGUFFile:
        """A GGUF file's fields and tensor table."""
        return read_gguf(self.place)

    def load(self, *, dtype: torch.dtype | None = None, device: str = "cpu", attend: Attend | None = None) -> Llama:
        """Load the model, in eval mode.

        `dtype` None keeps the stored one; quantized weights (GGUF's blocks, GPTQ, 8-bit floats) become bfloat16. On the
        CPU weights that need no conversion are mapped from the files, not copied.

        Raises:
            CheckpointError: a file is missing, damaged, its tensors do not fit its configuration or are not finite.
            ConfigError: it describes something other than a Llama.
        """
        if self.format != "huggingface" or unpacks(self.config.quantization_config, self.table, self.place):
            model = _load_stored(self.weights, dtype, device, attend)
        else:
            model = load_huggingface(self.place, self.config, self.table, dtype, device, attend)
        if isinstance(model, LlamaForCausalLM):
            model.tie_weights()
        return model.requires_grad_(True).eval()

    @property
    def has_blocks(self) -> bool:
        """Whether some matrices of a GGUF file are quantized in a way that the engine can compute with."""
        return self.format == "gguf" and any(tensor.dtype in BLOCK_TYPES for tensor in self.weights.tensors.values())

    def load_blocks(self, *, attend: Attend | None = None) -> Llama:
        """A GGUF file's model on the CPU for the engine: quantized matrices stay quantized, the rest is bfloat16.

        Raises:
            CheckpointError: the file is damaged, or its values are not finite.
            ConfigError: it describes something other than a Llama.
        """
        return _load_in_blocks(self.weights, attend)

    def learnable_config(self) -> ModelConfig:
        """The configuration for training; weights quantized by other tools are trained and saved dequantized.

        Raises:
            CheckpointError: its weights are quantized by `herd quantize`, for inference only.
        """
        quantization = self.config.quantization_config
        if quantization is not None and not unpacks(quantization, self.table, self.place):
            raise CheckpointError(f"{self.place} is quantized already; give the original weights.")
        return replace(self.config, quantization_config=None)


def open_checkpoint(path: Path | str | Checkpoint) -> Checkpoint:
    """The checkpoint at a path: a Hugging Face or Meta folder, a GGUF file, or a run folder with a checkpoint.

    An open `Checkpoint` is returned unchanged, so that functions can take either.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(path, Checkpoint):
        return path
    place = find_checkpoint(path)
    return Checkpoint(place, format_of(place))


def load(
    path: Path | str | Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    attend: Attend | None = None,
) -> Llama:
    """`open_checkpoint(path).load(...)`."""
    return open_checkpoint(path).load(dtype=dtype, device=device, attend=attend)


def _load_stored(weights: StoredWeights, dtype: torch.dtype | None, device: str, attend: Attend | None) -> Llama:
    """A model from weights that must be joined, permuted or dequantized as they are read."""
    model = empty_model(replace(weights.config, quantization_config=None), attend)
    dtype = dtype or weights.dtype
    state = {name: weights.read(name, dtype).to(device) for name in weights.tensors}
    check_finite(weights.path, state)
    model.load_state_dict(state, strict=False, assign=True)
    return model


def _load_in_blocks(weights: StoredWeights, attend: Attend | None) -> Llama:
    model = empty_model(weights.config, attend)
    state, held = {}, set()
    for name in weights.tensors:
        layer, dtype = name.removesuffix(".weight"), torch.bfloat16
        is_biased = f"{layer}.bias" in weights.tensors
        if is_biased or (blocks := weights.read_blocks(name)) is None:
            state[name] = weights.read(name, dtype)
            continue
        held.add(name)
        module = BlockEmbedding(blocks, dtype) if layer == "model.embed_tokens" else BlockLinear(blocks)
        model.set_submodule(layer, module)
        if isinstance(module, BlockEmbedding) and weights.config.tie_word_embeddings:
            model.set_submodule("lm_head", BlockLinear(blocks))
    check_finite(weights.path, state)
    model.load_state_dict(state, strict=False, assign=True)
    if isinstance(model, LlamaForCausalLM) and "model.embed_tokens.weight" not in held:
        model.tie_weights()
    return model.requires_grad_(False).eval()


# ---- save ------------------------------------------------------------------------------------------------------------


def save(
    model: Llama, folder: Path | str, tokenizer: Tokenizer | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint folder atomically; an existing folder is replaced.

    `dtype` None keeps the model's. Weights above 5 GB are written as shards with an index.

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
    """As `save`, with weights that are read only when their file is written; `like` gives their shapes and dtypes.

    Raises:
        CheckpointError: the weights are quantized.
    """
    if config.quantization_config is not None:
        raise CheckpointError(
            f"{folder}: a quantized model cannot be saved; save the model that it was quantized from."
        )
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
        write_configs(config, aside, stored)
        if tokenizer is not None:
            save_tokenizer(tokenizer, aside)


def _shards(weights: dict[str, Tensor], dtype: torch.dtype | None) -> Iterator[list[str]]:
    shard: list[str] = []
    used = 0
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


_CARRIED = {"herd.config": "as_read", "herd.generation": "generation"}  # Herd's own GGUF fields


def carried(config: ModelConfig) -> dict[str, Any]:
    """GGUF fields with the JSON files that a configuration was read from, so that they can be restored."""
    return {key: value for key, name in _CARRIED.items() if (value := getattr(config, name))}


def _original_configs(file: GGUFFile, config: ModelConfig) -> dict[str, Any]:
    """The inverse of `carried`, if they still describe this model: other tools may change the standard fields only."""
    try:
        sources = {name: json.loads(file.fields[key]) for key, name in _CARRIED.items() if key in file.fields}
        before = ModelConfig.from_dict(sources.get("as_read", {}))
    except (ValueError, TypeError, RecursionError, ConfigError):
        return {}
    same = all(getattr(before, name) == getattr(config, name) for name in ("hidden_size", "vocab_size", "rope_scaling"))
    return sources if same and before.num_hidden_layers == config.num_hidden_layers else {}


def write_configs(config: ModelConfig, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json, with the dtype of the weights, and generation_config.json."""
    values = config.to_dict()
    name = "torch_dtype" if "torch_dtype" in values and "dtype" not in values else "dtype"
    _write_json(folder / "config.json", values | {name: str(dtype).removeprefix("torch.")})
    if (generation := config.generation_config()) is not None:
        _write_json(folder / GENERATION, generation)
