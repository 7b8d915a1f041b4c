"""What rounding to 4 bits does to a model's predictions: Herd's int4 beside llama.cpp's Q4_0.

    python benchmarks/int4_quality.py CHECKPOINT PACK

CHECKPOINT is a model trained here, PACK a run folder of `herd pack`, whose held-out side is read. Q4_0 is llama.cpp's
own format by the `gguf` package's quantizer; every contestant rounds the same layers. The figure is the mean
Kullback-Leibler divergence from the model's own predictions, in nats a token. Results go to
benchmarks/results/int4_quality.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from herd.data.shards import Documents, open_heldout
from herd.environment import environment
from herd.evals.perplexity import sample_documents
from herd.formats.checkpoint import load
from herd.kernels import decoding
from herd.model.config import num_parameters
from herd.model.llama import LlamaForCausalLM
from herd.ops.attention import packed_attention
from herd.ops.compressed import takes
from herd.ops.fp8 import quantize_fp8
from herd.ops.paged_attention import quantize_heads
from herd.ops.quantized import dequantize_groups, dequantize_rows, quantize_groups, quantize_rows

RESULTS = Path(__file__).parent / "results"
TOKENS_PER_SOURCE = 8192


def q4_0(weight: Tensor) -> Tensor:
    kind = gguf.GGMLQuantizationType.Q4_0
    rows = weight.float().numpy()
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind).astype(np.float32))


def searched_int4(weight: Tensor) -> Tensor:
    return dequantize_groups(*quantize_groups(weight))[:, : weight.shape[1]]


def plain_int4(weight: Tensor) -> Tensor:
    """Round to the nearest of -7..7 with the scale that just holds the largest weight: what the search is worth."""
    groups = weight.float().unflatten(1, (-1, 32))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-30)
    return ((groups / scale).round() * scale).flatten(1)


def int8(weight: Tensor) -> Tensor:
    return dequantize_rows(*quantize_rows(weight))


def fp8(weight: Tensor) -> Tensor:
    rounded, factor = quantize_fp8(weight)
    return rounded.float() * factor[:, None]


def attend_with_int8_cache(q: Tensor, k: Tensor, v: Tensor, context, cache) -> Tensor:
    """Attention to keys and values as an int8 cache gives them back."""
    rounded = (quantize_heads(x) for x in (k, v))
    k, v = (small.to(q.dtype) * scale.to(q.dtype)[..., None] for small, scale in rounded)
    return packed_attention(q, k, v, context, cache)


CONTESTANTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "Herd int4, searched scales": (searched_int4, "int4"),
    "int4, largest weight sets the scale": (plain_int4, "int4"),
    "llama.cpp Q4_0": (q4_0, "int4"),
    "Herd int8": (int8, "int8"),
    "Herd fp8, weights only": (fp8, "fp8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pack", type=Path)
    arguments = parser.parse_args()
    decoding.wait()
    original = load(arguments.checkpoint, dtype=torch.float32)
    rows = held_out_rows(open_heldout(arguments.pack), original.config.max_position_embeddings)
    figures = {name: divergence(original, arguments.checkpoint, *how, rows) for name, how in CONTESTANTS.items()}
    same = load(arguments.checkpoint, dtype=torch.float32, attend=attend_with_int8_cache)
    figures["Herd int8 cache, weights as they are"] = compare(original, same, rows)
    write(arguments, original, figures, sum(row.numel() for row in rows))


def held_out_rows(heldout: dict[str, Documents], context: int) -> list[Tensor]:
    rows = []
    for documents in heldout.values():
        count = 0
        for index in sample_documents(documents, 8 * TOKENS_PER_SOURCE):
            rows.append(torch.from_numpy(documents.tokens(index)[:context].astype("int64"))[None])
            count += rows[-1].numel()
            if count >= TOKENS_PER_SOURCE:
                break
    return rows


@torch.inference_mode()
def divergence(
    original: LlamaForCausalLM, checkpoint: Path, rounded: Callable[[Tensor], Tensor], scheme: str, rows: list[Tensor]
) -> dict[str, float]:
    model = load(checkpoint, dtype=torch.float32)
    error = power = 0.0
    for name, parameter in model.named_parameters():
        if takes(scheme, name.removesuffix(".weight"), model.config.num_hidden_layers):
            found = rounded(parameter)
            error += float((found - parameter).square().sum())
            power += float(parameter.square().sum())
            parameter.copy_(found)
    return compare(original, model, rows) | {"relative_squared_weight_error": round(error / power, 6)}


@torch.inference_mode()
def compare(original: LlamaForCausalLM, model: LlamaForCausalLM, rows: list[Tensor]) -> dict[str, float]:
    total = same = count = 0.0
    for row in rows:
        p, q = (m(row).log_softmax(-1) for m in (original, model))
        total += float((p.exp() * (p - q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
        count += row.numel()
    return {
        "kl_nats_per_token": round(total / count, 6),
        "same_likeliest_token": round(same / count, 4),
    }


def write(arguments: argparse.Namespace, model: LlamaForCausalLM, figures: dict, num_tokens: int) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "benchmark": "int4_quality",
        "date": str(date.today()),
        "commit": commit,
        "command": "python benchmarks/int4_quality.py CHECKPOINT PACK",
        "hardware": {"cpu": environment()["processor"], "torch": torch.__version__},
        "model": {"parameters": num_parameters(model.config), "held_out_tokens": num_tokens},
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "int4_quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
