"""Training speed on one GPU: a Llama of 1B parameters at context 8192, in one command.

    python benchmarks/train_gpu.py [--layers 16] [--context 8192] [--rows 2] [--steps 12] [--dtype bf16 fp8]

Random tokens, whole steps (forward, backward, clip, AdamW with float32 masters), blocks compiled. MFU counts 6 FLOPs a
matmul parameter (head included) and the causal half of attention, against 989 TFLOP/s (H100, H200; dense bf16).
Results go to benchmarks/results/train-gpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
from train_step import commit

from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.model.init import initialize
from herd.model.llama import empty_model
from herd.train.compile import choose_float8, compile_model, recompute_layers
from herd.train.objectives import next_token
from herd.train.optimizer import FlatAdamW, OptimizerSettings
from herd.types import Batch

PEAK_FLOPS = 989e12
WARMUP = 3


def measure(config: ModelConfig, dtype: str, options: argparse.Namespace) -> dict:
    torch.cuda.reset_peak_memory_stats()
    model = empty_model(config, device="cpu")
    initialize(model, seed=0)
    model = model.to("cuda", torch.bfloat16).train()
    adamw = FlatAdamW(model, OptimizerSettings(learning_rate=1e-4))
    if dtype == "fp8":
        choose_float8(model, options.rows * options.context)
    recompute_layers(model, options.recompute)
    compiled = compile_model(model, "on")
    tokens = torch.randint(config.vocab_size, (options.rows, options.context + 1))
    batch = Batch(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        positions=torch.arange(options.context).expand(options.rows, -1),
        document_ids=torch.zeros(options.rows, options.context, dtype=torch.int32),
    ).to("cuda")
    seconds, losses = [], []
    for _ in range(WARMUP + options.steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        adamw.drop_gradients()
        loss = model.run(next_token, batch)
        loss.sum.backward()
        adamw.collect()
        count = loss.count.item()
        adamw.step(1e-4, count, adamw.norm(count))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.sum.item() / count)
    rate = options.rows * options.context / statistics.median(seconds[WARMUP:])
    return {
        "dtype": dtype,
        "compiled": compiled,
        "tokens_per_second": round(rate),
        "mfu": round(rate * flops_per_token(config, options.context) / PEAK_FLOPS, 3),
        "peak_memory_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--recompute", type=int, default=0)
    parser.add_argument("--dtype", nargs="+", choices=["bf16", "fp8"], default=["bf16", "fp8"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs an NVIDIA GPU; benchmarks/train.py measures a CPU")
    config = ModelConfig(  # Llama 3.2 1B's shape
        vocab_size=128256, hidden_size=2048, num_hidden_layers=options.layers, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=8192, max_position_embeddings=options.context,
        tie_word_embeddings=True,
    )  # fmt: skip
    result = {
        "benchmark": "train_gpu",
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/train_gpu.py " + " ".join(sys.argv[1:]),
        "hardware": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "peak_flops": PEAK_FLOPS},
        "shape": {"parameters": num_parameters(config), "context": options.context, "rows": options.rows},
        "results": [measure(config, dtype, options) for dtype in options.dtype],
    }
    file = Path(__file__).parent / "results" / "train-gpu.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["results"], indent=1))


if __name__ == "__main__":
    main()
