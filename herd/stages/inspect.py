"""Say what a checkpoint is: its shape, weights, tokenizer, chat template, and what is odd about it."""

from __future__ import annotations

import json as json_format
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from herd.config import settings
from herd.errors import DataError
from herd.log import size
from herd.model.checkpoint import find_checkpoint, load
from herd.model.config import ModelConfig, num_parameters
from herd.model.llama import Llama
from herd.tokenizer.tokenizer import Tokenizer


@settings
class InspectSettings:
    """What to look at, and how closely."""

    path: Path
    """Checkpoint folder (Hugging Face's or Meta's) or run folder."""
    weights: bool = False
    """Also read every weight and report what is not finite or all zero; takes as long as reading the files."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(settings: InspectSettings) -> None:
    """Print the findings.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    findings = examine(settings.path, weights=settings.weights)
    print(json_format.dumps(findings, indent=1) if settings.json else _table(findings))


def examine(path: Path, *, weights: bool = False) -> dict[str, Any]:
    """What `herd inspect` prints, as plain values."""
    folder = find_checkpoint(path)
    model = load(folder)
    tokenizer, trouble = _tokenizer(folder)
    config = model.config
    stored = [*model.parameters(), *model.buffers()]
    return {
        "path": str(folder),
        "architecture": config.architecture,
        "parameters": num_parameters(config),
        "weights_bytes": sum(tensor.nbytes for tensor in stored),
        "dtypes": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored)),
        "config": config.to_dict(),
        "cache_bytes_per_token": _cache_bytes(config),
        "tokenizer": tokenizer
        and {
            "vocab_size": tokenizer.vocab_size,
            "special_tokens": len(tokenizer.special),
            "stop_ids": list(tokenizer.stop_ids),
            "chat_style": tokenizer.chat_style,
            "fingerprint": tokenizer.fingerprint,
        },
        "odd": [*trouble, *_oddities(folder, config, tokenizer), *(_odd_weights(model) if weights else [])],
    }


def _tokenizer(folder: Path) -> tuple[Tokenizer | None, list[str]]:
    try:
        return Tokenizer.load(folder), []
    except DataError as fault:
        return None, [f"no usable tokenizer: {fault}"]


def _oddities(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> list[str]:
    odd = []
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        odd.append(
            f"the tokenizer has {tokenizer.vocab_size:,} ids but the embedding only {config.vocab_size:,} rows: "
            "some tokens would crash the model"
        )
    if tokenizer and tokenizer.vocab_size < config.vocab_size:
        odd.append(f"{config.vocab_size - tokenizer.vocab_size:,} embedding rows have no token (padding, perhaps)")
    if not config.eos_token_ids:
        odd.append("config.json names no eos_token_id: other engines may not know when to stop")
    elif tokenizer and not set(config.eos_token_ids) & set(tokenizer.stop_ids):
        odd.append(f"eos_token_id {list(config.eos_token_ids)} is none of the tokenizer's ends {tokenizer.stop_ids}")
    if not (folder / "generation_config.json").is_file():
        odd.append("no generation_config.json: other engines sample with their own defaults")
    scaling = config.rope_scaling
    if scaling and config.max_position_embeddings <= scaling.original_max_position_embeddings:
        odd.append(f"RoPE is scaled, though the context of {config.max_position_embeddings:,} does not need it")
    return odd


def _odd_weights(model: Llama) -> list[str]:
    odd = []
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            odd.append(f"{name} holds values that are not finite")
        elif not tensor.any():
            odd.append(f"{name} is all zero")
    return odd


def _cache_bytes(config: ModelConfig) -> int:
    """Keys and values of one token in 16 bits."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _table(found: dict[str, Any]) -> str:
    config, tokenizer = found["config"], found["tokenizer"]
    heads = f"{config['num_attention_heads']} heads of {config['head_dim']}, {config['num_key_value_heads']} key-value"
    tied = ", tied to the output" if config["tie_word_embeddings"] else ""
    scaling = config.get("rope_scaling")
    rope = f"theta {config['rope_theta']:,.0f}" + (f", scaled {scaling['factor']:g}x (llama3)" if scaling else "")
    dtypes = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in found["dtypes"].items())
    quantized = (config.get("quantization_config") or {}).get("format")
    rows = {
        "architecture": found["architecture"],
        "parameters": f"{found['parameters']:,}",
        "weights": f"{size(found['weights_bytes'])}: {dtypes}" + (f", quantized ({quantized})" if quantized else ""),
        "layers": f"{config['num_hidden_layers']} of width {config['hidden_size']:,}, {heads}",
        "feed-forward": f"{config['intermediate_size']:,}",
        "vocabulary": f"{config['vocab_size']:,} rows{tied}",
        "context": f"{config['max_position_embeddings']:,} tokens, RoPE {rope}",
        "cache": f"{size(found['cache_bytes_per_token'])} a token in 16 bits",
        "tokenizer": tokenizer
        and f"{tokenizer['vocab_size']:,} ids, {tokenizer['special_tokens']} special, stops at {tokenizer['stop_ids']}",
        "chat format": tokenizer and f"Llama 3, style `{tokenizer['chat_style']}`",
    }
    lines = [found["path"], *(f"  {name:<14}{value}" for name, value in rows.items() if value)]
    lines += ["", "odd:" if found["odd"] else "Nothing odd.", *(f"  - {fault}" for fault in found["odd"])]
    return "\n".join(lines)
