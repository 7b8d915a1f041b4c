"""Examining a checkpoint: shape, storage, tokenizer, weights and predictions, and what looks wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.errors import DataError
from herd.formats.checkpoint import GENERATION, Checkpoint, open_checkpoint
from herd.formats.compare import difference_of, layerwise_logits, sample_tokens
from herd.formats.stored import StoredWeights
from herd.log import size
from herd.model.config import CAUSAL_LM, ModelConfig, num_parameters
from herd.model.llama import Llama
from herd.ops.probe import available_memory
from herd.tokenizer.chat import ends, format_name, render, stops
from herd.tokenizer.specials import END_OF_TURN
from herd.tokenizer.splits import split_of
from herd.tokenizer.tokenizer import Tokenizer

_SAMPLED_ROWS = 4  # of each tensor, evenly spaced, unless all are read
_LLAMA3_ROWS = 128_000
_TURN_ENDS = (END_OF_TURN, "<|im_end|>", "<|end|>", "<end_of_turn>")
_SENTENCES = (
    "The file is opened for reading. If there is no file of that name, an error is raised and nothing is changed. "
    "When the last line has been read, the file is closed."
)


def examine(path: Path | Checkpoint, *, weights: bool = False) -> dict[str, Any]:
    """The findings that `herd inspect` prints, as plain values.

    With `weights` all weights are read, not a few rows of each tensor, and the model is evaluated on a text.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    checkpoint = open_checkpoint(path)
    stored = None if checkpoint.is_packed else checkpoint.weights
    tokenizer, trouble = _tokenizer(checkpoint)
    config = checkpoint.config
    kinds, num_bytes = _storage(checkpoint, stored)
    odd = [*trouble, *_oddities(checkpoint, tokenizer), *_odd_storage(checkpoint, stored)]
    broken = _odd_weights(_rows(stored, whole=weights) if stored else _tensors(checkpoint.load()))
    odd += broken
    if weights and stored and tokenizer and not odd:
        odd += _odd_predictions(stored, tokenizer)
    loaded = _loaded_rightly(checkpoint, stored) if weights and stored and not broken else None
    return {
        "path": str(checkpoint.place),
        "format": checkpoint.format,
        "architecture": config.architecture,
        "parameters": num_parameters(config),
        "weights_bytes": num_bytes,
        "dtypes": kinds,
        "config": config.to_dict() | replace(config, as_read=None).to_dict(),  # what the file leaves out, too
        "cache_bytes_per_token": _cache_bytes(config),
        "tokenizer": tokenizer
        and {
            "vocab_size": tokenizer.vocab_size,
            "special_tokens": len(tokenizer.special),
            "stop_ids": list(stops(tokenizer)),
            "pre_tokenizer": split_of(tokenizer),
            "opens_with": tokenizer.bos if tokenizer.add_bos else None,
            "chat_format": format_name(tokenizer),
            "end_of_turn": [tokenizer.decode([token]) for token in ends(tokenizer).ids] or list(ends(tokenizer).texts),
            "fingerprint": tokenizer.fingerprint,
        },
        "loaded": loaded,
        "odd": odd,
    }


@torch.inference_mode()
def _loaded_rightly(checkpoint: Checkpoint, stored: StoredWeights) -> dict[str, float] | str | None:
    """Compare the loaded model's logits with those computed from the file in its own order of channels."""
    if stored.config.architecture != CAUSAL_LM:
        return None
    needed = 4 * num_parameters(stored.config)
    if needed > available_memory(torch.device("cpu")):
        return f"not compared: needs {size(needed)} of memory; `herd convert` compares layer by layer"
    tokens = sample_tokens(stored, stored)
    model = checkpoint.load(dtype=torch.float32)
    return asdict(difference_of(layerwise_logits(stored, tokens), model(tokens[None])[0]))


def _storage(checkpoint: Checkpoint, stored: StoredWeights | None) -> tuple[dict[str, int], int]:
    """The number of tensors of each dtype, and the bytes of all."""
    if stored is None:
        infos = checkpoint.table.values()
        kinds = Counter(str(info.dtype).removeprefix("torch.") for info in infos)
        return dict(kinds), sum(math.prod(info.shape) * info.dtype.itemsize for info in infos)
    return dict(Counter(tensor.dtype for tensor in stored.tensors.values())), stored.num_bytes


def _tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer | None, list[str]]:
    try:
        return checkpoint.tokenizer, []
    except DataError as fault:
        return None, [f"no usable tokenizer: {fault}"]


def _odd_format(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[str]:
    """Problems of the chat template: it fails, it does not end turns, or it is missing."""
    if tokenizer.chat_template is None:
        end = next(
            (name for name in _TURN_ENDS if tokenizer.special.get(name) in checkpoint.config.eos_token_ids), None
        )
        return [f"no chat template, though {end} ends its answers; choose a format with engine.template"] if end else []
    odd = []
    try:
        render(tokenizer, [{"role": "user", "content": "Hello"}], generation_prompt=True)
    except DataError as fault:
        odd.append(f"its chat template fails on a plain question: {fault}")
    turn_ends = ends(tokenizer)
    if not odd and not turn_ends.ids:
        instead = f"the text {turn_ends.texts[0]!r}" if turn_ends.texts else "nothing"
        odd.append(f"its chat template ends a turn with {instead}, not a special token")
    return odd


def _oddities(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> list[str]:
    config, odd = checkpoint.config, _odd_format(checkpoint, tokenizer) if tokenizer else []
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        odd.append(
            f"the tokenizer has {tokenizer.vocab_size:,} ids but the embedding only {config.vocab_size:,} rows: "
            "some tokens would crash the model"
        )
    if tokenizer and tokenizer.vocab_size < config.vocab_size:
        odd.append(f"{config.vocab_size - tokenizer.vocab_size:,} embedding rows have no token (perhaps padding)")
    if not config.eos_token_ids:
        odd.append("config.json names no eos_token_id: other engines may not know when to stop")
    elif tokenizer and not set(config.eos_token_ids) & set(stops(tokenizer)):
        odd.append(
            f"eos_token_id {list(config.eos_token_ids)} is not among the tokenizer's stop ids {stops(tokenizer)}"
        )
    if tokenizer and tokenizer.bos and config.bos_token_id not in (None, tokenizer.special[tokenizer.bos]):
        odd.append(
            f"bos_token_id {config.bos_token_id} is not the tokenizer's {tokenizer.special[tokenizer.bos]}: "
            "perhaps the tokenizer of another model"
        )
    if checkpoint.format == "huggingface" and not (checkpoint.place / GENERATION).is_file():
        odd.append("no generation_config.json: other engines sample with their own defaults")
    scaling = config.rope_scaling
    original = getattr(scaling, "original_max_position_embeddings", math.inf)
    if config.max_position_embeddings <= original < math.inf:
        odd.append(f"RoPE is scaled, though the context of {config.max_position_embeddings:,} does not need it")
    if config.vocab_size >= _LLAMA3_ROWS and config.rope_theta < 100_000:
        odd.append(f"rope_theta is {config.rope_theta:,.0f}, but 500,000 is usual with Llama 3's vocabulary")
    if scaling is None and config.max_position_embeddings > 32_768 and config.rope_theta <= 500_000:
        odd.append(
            f"a context of {config.max_position_embeddings:,} without RoPE scaling: perhaps Llama 3.1's is missing"
        )
    return odd


def _odd_storage(checkpoint: Checkpoint, stored: StoredWeights | None) -> list[str]:
    """Problems of storage: a head that duplicates the embedding, a dtype other than config.json's."""
    if stored is None or stored.config.architecture != CAUSAL_LM:
        return []
    odd = []
    embedding, head = stored.tensors["model.embed_tokens.weight"], stored.tensors.get("lm_head.weight")
    if head and torch.equal(embedding.rows(0, 16), head.rows(0, 16)):
        odd.append("the head seems to be the embedding, stored twice (tie_word_embeddings is false)")
    if stored.format != "huggingface":
        return odd
    if stored.config.tie_word_embeddings and "lm_head.weight" in checkpoint.table:
        odd.append("lm_head.weight is stored although it is tied to the embedding; the stored one is ignored")
    values = json.loads((checkpoint.place / "config.json").read_text(encoding="utf-8"))
    declared = values.get("dtype") or values.get("torch_dtype")
    if declared and declared != embedding.dtype:
        odd.append(f"config.json declares {declared}, but the weights are {embedding.dtype}")
    return odd


def _rows(stored: StoredWeights, *, whole: bool) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in chunks, or a few rows of each; norms always whole."""
    for name, tensor in stored.tensors.items():
        if whole or len(tensor.shape) == 1:
            yield from ((name, rows) for rows in stored.chunks(name))
        else:
            last = tensor.shape[0] - 1
            places = sorted({last * i // (_SAMPLED_ROWS - 1) for i in range(_SAMPLED_ROWS)})
            yield name, torch.cat([tensor.rows(place, place + 1) for place in places])


def _tensors(model: Llama) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point())


def _odd_weights(pieces: Iterator[tuple[str, Tensor]]) -> list[str]:
    broken: list[str] = []
    nonzero: dict[str, bool] = {}
    for name, rows in pieces:
        if name not in broken and not torch.isfinite(rows).all():
            broken.append(name)
        nonzero[name] = nonzero.get(name, False) or bool(rows.any())
    odd = [f"{name} holds values that are not finite" for name in broken]
    empty = [name for name, any in nonzero.items() if not any and not name.endswith(".bias")]
    return odd + [f"{name} is all zero" for name in empty]


def _odd_predictions(stored: StoredWeights, tokenizer: Tokenizer) -> list[str]:
    """Whether English text has a high loss, a sign of a wrong tokenizer, wrong RoPE settings or damaged weights."""
    if stored.config.architecture != CAUSAL_LM:
        return []
    tokens = torch.tensor(tokenizer.encode(_SENTENCES, bos=True))
    logits = layerwise_logits(stored, tokens)[:-1]
    loss = float(torch.nn.functional.cross_entropy(logits, tokens[1:]))
    guessing = math.log(stored.config.vocab_size)
    if loss < guessing - 0.1:
        return []
    return [
        f"predicts plain English no better than guessing ({loss:.1f} nats per token; guessing gives "
        f"{guessing:.1f}): not trained, or another tokenizer, other RoPE settings, or another language"
    ]


def _cache_bytes(config: ModelConfig) -> int:
    """Bytes of one token's keys and values in 16 bits."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
