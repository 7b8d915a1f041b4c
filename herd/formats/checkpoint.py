"""The door: a checkpoint is opened once, in any format, and saved as a Hugging Face folder that other engines load."""

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
    """A checkpoint in any format, made by `open_checkpoint`; its parts are read when they are first asked for."""

    place: Path
    """The folder or file that holds it."""
    format: Format

    @cached_property
    def config(self) -> ModelConfig:
        """Its shape.

        Raises:
            CheckpointError: it is damaged.
            ConfigError: it describes something other than a Llama.
        """
        if self.format != "huggingface":
            return self.weights.config
        config = ModelConfig.from_folder(self.place)
        if config.tie_word_embeddings and has_own_head(self.place):
            say(f"  {self.place}: config.json ties the head to the embedding, but another one is stored; that is used")
            return replace(config, tie_word_embeddings=False)
        return config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary that travels with it.

        Raises:
            DataError: there is none, or it is damaged or of a kind that is not supported.
        """
        if self.format == "gguf":
            return read_vocabulary(self._container)
        found = load_tokenizer(self.place)
        if self.format == "meta" and found.special.get(END_OF_TURN) in self.config.eos_token_ids:
            return found.with_template(META_TEMPLATE)  # Meta's files have no place for it
        return found

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template that travels with it, None where there is none.

        Raises:
            DataError: it is damaged.
        """
        return read_template(self._container) if self.format == "gguf" else load_template(self.place)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What its generation_config.json says; empty where there is none or it is no JSON object."""
        try:
            values = json.loads((self.place / GENERATION).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    @cached_property
    def table(self) -> dict[str, TensorInfo]:
        """What the files of a Hugging Face folder hold, packed or not.

        Raises:
            CheckpointError: it is in another format, or a file is missing or damaged.
        """
        if self.format != "huggingface":
            raise CheckpointError(
                f"{self.place} is no Hugging Face folder; `herd convert {self.place} A-FOLDER` makes one of it."
            )
        return tensors_in_folder(self.place)

    @property
    def is_packed(self) -> bool:
        """Whether its weights are whole numbers with scales (`herd quantize`): never read piece by piece."""
        return self.format == "huggingface" and holds_packed(self.config, self.table, self.place)

    @cached_property
    def weights(self) -> StoredWeights:
        """Its tensors, under Hugging Face's names, to be read piece by piece.

        Raises:
            CheckpointError: a file is missing, damaged, or its tensors do not fit its configuration; or it is packed.
            ConfigError: it describes something other than a Llama.
        """
        if self.format in ("gguf", "meta"):
            found = open_gguf(self._container) if self.format == "gguf" else open_meta(self.place)
            told: dict[str, Any] = {"as_read": {}, "generation": self.generation or None}
            if self.format == "gguf":
                told |= _carried_back(self._container, found.config)
            return replace(found, config=replace(found.config, **told))
        return open_huggingface(self.place, self.config, self.table)

    @cached_property
    def _container(self) -> GGUFFile:
        """A GGUF file's fields and table, which weights, vocabulary and template are taken from."""
        return read_gguf(self.place)

    def load(self, *, dtype: torch.dtype | None = None, device: str = "cpu", attend: Attend | None = None) -> Llama:
        """Its model, in eval mode.

        `dtype` None keeps what is on disk; what is packed (GGUF's blocks, GPTQ, 8-bit floats) becomes bfloat16. On the
        CPU the weights are mapped from the files, not copied, where a file holds them as they are needed.

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
        """Whether a GGUF file's matrices are, some of them, in blocks of few bits with which the engine can compute."""
        return self.format == "gguf" and any(tensor.dtype in BLOCK_TYPES for tensor in self.weights.tensors.values())

    def load_blocks(self, *, attend: Attend | None = None) -> Llama:
        """A GGUF file's model on the CPU for the engine: what is in blocks stays so, the rest is bfloat16.

        Raises:
            CheckpointError: the file is damaged, or its values are not finite.
            ConfigError: it describes something other than a Llama.
        """
        return _load_in_blocks(self.weights, attend)

    def learnable_config(self) -> ModelConfig:
        """Its shape where it is to be learned from; what others quantized is learned, and saved, as plain numbers.

        Raises:
            CheckpointError: its weights are quantized in a way in which they can be used, and not be learned.
        """
        quantization = self.config.quantization_config
        if quantization is not None and not unpacks(quantization, self.table, self.place):
            raise CheckpointError(f"{self.place} is quantized already; give the original weights.")
        return replace(self.config, quantization_config=None)


def open_checkpoint(path: Path | str | Checkpoint) -> Checkpoint:
    """The checkpoint that a path means: a folder of Hugging Face's or Meta's, a GGUF file, a run folder that has one.

    What is open already is given back, so that functions take either.

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
    """A model from weights that have to be joined, turned or unpacked as they are read."""
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


_CARRIED = {"herd.config": "as_read", "herd.generation": "generation"}  # GGUF fields of our own


def carried(config: ModelConfig) -> dict[str, Any]:
    """What a GGUF file keeps of the files that a configuration was read from, so that a folder comes back as it was."""
    return {key: value for key, name in _CARRIED.items() if (value := getattr(config, name))}


def _carried_back(file: GGUFFile, config: ModelConfig) -> dict[str, Any]:
    """The same, if it still describes this model: other tools change a file's fields, and pass over these."""
    try:
        told = {name: json.loads(file.fields[key]) for key, name in _CARRIED.items() if key in file.fields}
        before = ModelConfig.from_dict(told.get("as_read", {}))
    except (ValueError, TypeError, RecursionError, ConfigError):
        return {}
    same = all(getattr(before, name) == getattr(config, name) for name in ("hidden_size", "vocab_size", "rope_scaling"))
    return told if same and before.num_hidden_layers == config.num_hidden_layers else {}


def write_configs(config: ModelConfig, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json with the number type of the weights, and generation_config.json."""
    values = config.to_dict()
    name = "torch_dtype" if "torch_dtype" in values and "dtype" not in values else "dtype"
    _write_json(folder / "config.json", values | {name: str(dtype).removeprefix("torch.")})
    if (generation := config.generation_config()) is not None:
        _write_json(folder / GENERATION, generation)
