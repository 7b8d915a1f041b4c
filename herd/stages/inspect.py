"""Describe a checkpoint: its shape, weights, tokenizer, chat template, and anything odd about it.

Any format is read. `against=OTHER` also compares its predictions on a few tokens with those of another checkpoint, in
any format: a check after a conversion, a download or a merge.
"""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.compare import Difference, difference
from herd.formats.examine import examine
from herd.log import progress, size


@settings
class InspectSettings:
    """The checkpoint, and how thoroughly to check it."""

    path: Path
    """Checkpoint in any format (a folder of Hugging Face's or Meta's, a GGUF file) or run folder."""
    weights: bool = False
    """Read every weight instead of a few rows per tensor, run the model on a sentence, and check that it loads."""
    against: Path | None = None
    """Another checkpoint of the same shape, in any format: compare the logits of a few tokens."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(settings: InspectSettings) -> None:
    """Print the findings.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    checkpoint = open_checkpoint(settings.path)
    findings = examine(checkpoint, weights=settings.weights)
    if settings.against:
        findings["difference"] = asdict(_compare(checkpoint, settings.against)) | {"against": str(settings.against)}
    print(json_format.dumps(findings, indent=1) if settings.json else _table(findings))


def _compare(checkpoint: Checkpoint, other: Path) -> Difference:
    first, second = checkpoint.weights, open_checkpoint(other).weights
    layers = first.config.num_hidden_layers + second.config.num_hidden_layers + 2
    with progress("compare", total=layers, unit="layers") as bar:
        return difference(first, second, lambda _: bar.advance(1))


def _turn(ends: list[str]) -> str:
    return f", the end of a turn is {' '.join(map(repr, ends))}" if ends else ""


def _table(findings: dict[str, Any]) -> str:
    config, tokenizer = findings["config"], findings["tokenizer"]
    heads = f"{config['num_attention_heads']} heads of {config['head_dim']}, {config['num_key_value_heads']} key-value"
    tied = ", tied to the output" if config["tie_word_embeddings"] else ""
    scaling = config.get("rope_scaling")
    rope = f"theta {config['rope_theta']:,.0f}{_scaled(scaling)}"
    dtypes = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in findings["dtypes"].items())
    quantized = (config.get("quantization_config") or {}).get("format")
    rows = {
        "format": {"huggingface": "Hugging Face", "meta": "Meta", "gguf": "GGUF"}[findings["format"]],
        "architecture": findings["architecture"],
        "parameters": f"{findings['parameters']:,}",
        "weights": f"{size(findings['weights_bytes'])}: {dtypes}" + (f", quantized ({quantized})" if quantized else ""),
        "layers": f"{config['num_hidden_layers']} of width {config['hidden_size']:,}, {heads}",
        "feed-forward": f"{config['intermediate_size']:,}",
        "vocabulary": f"{config['vocab_size']:,} rows{tied}",
        "context": f"{config['max_position_embeddings']:,} tokens, RoPE {rope}",
        "cache": f"{size(findings['cache_bytes_per_token'])} a token in 16 bits",
        "tokenizer": tokenizer
        and f"{tokenizer['vocab_size']:,} ids, {tokenizer['special_tokens']} special, cut as "
        f"{tokenizer['pre_tokenizer']}, {tokenizer['opens_with'] or 'nothing'} before a text",
        "chat format": tokenizer and (tokenizer["chat_format"] or "none: a base model, which goes on with a text"),
        "stops at": tokenizer and f"{tokenizer['stop_ids']}{_turn(tokenizer['end_of_turn'])}",
    }
    if loaded := findings["loaded"]:
        rows["loaded"] = loaded if isinstance(loaded, str) else f"beside the file itself: {Difference(**loaded)}"
    if against := findings.get("difference"):
        figures = {name: value for name, value in against.items() if name != "against"}
        rows["compared"] = f"with {against['against']}: {Difference(**figures)}"
    lines = [findings["path"], *(f"  {name:<14}{value}" for name, value in rows.items() if value)]
    lines += ["", "odd:" if findings["odd"] else "Nothing odd.", *(f"  - {fault}" for fault in findings["odd"])]
    return "\n".join(lines)


def _scaled(scaling: dict[str, Any] | None) -> str:
    if scaling is None:
        return ""
    factor = f" {scaling['factor']:g}x" if scaling.get("factor") else ""
    return f", scaled{factor} ({scaling['rope_type']})"
