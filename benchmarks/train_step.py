"""How fast a training step is on this CPU: Herd beside `transformers`, interleaved in one run.

    python benchmarks/train_step.py [--shape small|demo|long] [--rounds 6] [--threads 2] [--compiled]

Every contestant starts from the same weights, sees the same tokens in the same order, and does whole steps: forward,
backward, clipping at norm 1, AdamW. They take turns, so that whatever else the machine does hits all of them. The loss
after the last step shows that they learned the same. Results go to benchmarks/results/train_step-<shape>.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from herd.formats import checkpoint
from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM, empty_model
from herd.ops.probe import matmul_rate
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.optimizer import FlatAdamW, OptimizerSettings
from herd.types import Batch, Loss

LEARNING_RATE = 1e-3
STEPS_PER_TURN = 2
RESULTS = Path(__file__).parent / "results"


def shape(context: int, rows: int, **sizes: int | bool) -> tuple[ModelConfig, int, int]:
    return ModelConfig(max_position_embeddings=context, **sizes), rows, context


SHAPES = {
    "small": shape(  # 7.3M parameters
        512, 8, hidden_size=256, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=768, vocab_size=4096, tie_word_embeddings=True,
    ),
    "demo": shape(
        256, 16, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=704, vocab_size=8192, tie_word_embeddings=True,
    ),
    "long": shape(
        1024, 4, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=704, vocab_size=8192, tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclass
class Contestant:
    """One way to train: a function from tokens to the mean loss, and the seconds its steps took."""

    name: str
    step: Callable[[Tensor], float]
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def take_turn(self, batches: list[Tensor]) -> None:
        for tokens in batches:
            began = time.perf_counter()
            self.losses.append(self.step(tokens))
            self.seconds.append(time.perf_counter() - began)


def herd_step(model: LlamaForCausalLM) -> Callable[[Tensor], float]:
    """Herd's own step: packed batch, chunked loss, float32 masters."""
    optimizer = FlatAdamW(model.train(), OptimizerSettings(learning_rate=LEARNING_RATE))

    def objective(hidden: Tensor, head, batch: Batch) -> Loss:
        return Loss(head.cross_entropy_sum(hidden, batch.labels), torch.tensor(batch.labels.numel()), {})

    def step(tokens: Tensor) -> float:
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        positions = torch.arange(inputs.shape[1]).expand_as(inputs)
        ids = torch.zeros(inputs.shape, dtype=torch.int32)
        loss = model.run(objective, Batch(tokens=inputs, labels=labels, positions=positions, document_ids=ids))
        loss.sum.backward()
        optimizer.collect()
        count = loss.count.item()
        optimizer.step(LEARNING_RATE, count, optimizer.norm(count))
        return loss.sum.item() / count

    return step


def peer_step(model: torch.nn.Module, autocast: bool = False, compiled: bool = False) -> Callable[[Tensor], float]:
    """The plain PyTorch step around a `transformers` model."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model

    def step(tokens: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = forward(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def contestants(config: ModelConfig, compiled: bool) -> list[Contestant]:
    model = empty_model(config, device="cpu")
    initialize(model, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        checkpoint.save(model, start)

        def ours(dtype: torch.dtype) -> LlamaForCausalLM:
            return checkpoint.load(start, dtype=dtype)

        def theirs(dtype: torch.dtype) -> torch.nn.Module:
            return transformers.AutoModelForCausalLM.from_pretrained(start, dtype=dtype, attn_implementation="sdpa")

        peer = f"transformers {transformers.__version__}"
        field_ = [
            Contestant("Herd, bf16 with fp32 masters", herd_step(ours(torch.bfloat16))),
            Contestant(f"{peer}, bf16 weights", peer_step(theirs(torch.bfloat16))),
            Contestant(f"{peer}, bf16 autocast", peer_step(theirs(torch.float32), autocast=True)),
            Contestant("Herd, fp32", herd_step(ours(torch.float32))),
            Contestant(f"{peer}, fp32", peer_step(theirs(torch.float32))),
        ]
        if compiled:
            field_.append(
                Contestant(f"{peer}, bf16 weights, compiled", peer_step(theirs(torch.bfloat16), compiled=True))
            )
    return field_


def token_batches(config: ModelConfig, rows: int, context: int, count: int) -> list[Tensor]:
    """Tokens in which there is something to learn: each follows its predecessor by one of a few fixed rules."""
    generator = torch.Generator().manual_seed(0)
    rules = torch.randint(config.vocab_size, (config.vocab_size, 4), generator=generator)
    batches = []
    for _ in range(count):
        tokens = [torch.randint(config.vocab_size, (rows,), generator=generator)]
        for _ in range(context):
            choice = torch.randint(4, (rows,), generator=generator)
            tokens.append(rules[tokens[-1], choice])
        batches.append(torch.stack(tokens, dim=1))
    return batches


def text_rows(files: Sequence[Path], vocabulary: int, context: int) -> tuple[np.ndarray, int]:
    """Rows of context + 1 tokens of texts (*.jsonl.gz, column `text`), their tokenizer trained on them; bytes read."""
    texts = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    tokenizer = Tokenizer.train((text[:200_000] for text in texts), vocabulary)
    tokens = np.concatenate([np.asarray(tokenizer.encode(text, eos=True), np.uint32) for text in texts])
    rows = tokens[: len(tokens) // (context + 1) * (context + 1)].reshape(-1, context + 1)
    return rows, sum(len(text.encode()) for text in texts)


def hardware(threads: int) -> dict:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = next((line.split(":")[1].split() for line in _cpuinfo() if line.startswith("flags")), [])
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": threads,
        "bf16_instructions": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "matmul_bf16_gflops": round(matmul_rate(torch.bfloat16) / 1e9),
        "matmul_fp32_gflops": round(matmul_rate(torch.float32) / 1e9),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def summary(entry: Contestant, tokens: int, config: ModelConfig, context: int, peak: float) -> dict:
    measured = entry.seconds[STEPS_PER_TURN:]  # the first turn warms up
    median = statistics.median(measured)
    return {
        "name": entry.name,
        "tokens_per_second": round(tokens / median),
        "tokens_per_second_best": round(tokens / min(measured)),
        "step_milliseconds": round(1000 * median, 1),
        "mfu": round(flops_per_token(config, context) * tokens / median / peak, 3),
        "first_loss": round(entry.losses[0], 4),
        "last_loss": round(statistics.mean(entry.losses[-4:]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true", help="also the compiled peer (needs a C++ compiler)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    config, rows, context = SHAPES[options.shape]
    runners = contestants(config, options.compiled)
    batches = token_batches(config, rows, context, STEPS_PER_TURN * options.rounds)
    for turn in range(options.rounds):
        for entry in runners:
            entry.take_turn(batches[turn * STEPS_PER_TURN : (turn + 1) * STEPS_PER_TURN])
    machine = hardware(options.threads)
    result = {
        "benchmark": "train_step",
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/train_step.py " + " ".join(sys.argv[1:]),
        "hardware": machine,
        "shape": {"parameters": num_parameters(config), "context": context, "tokens": rows * context}
        | {k: v for k, v in config.to_dict().items() if k.endswith("_size") or k.startswith("num_")},
        "results": [
            summary(entry, rows * context, config, context, machine["matmul_bf16_gflops"] * 1e9) for entry in runners
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"train_step-{options.shape}.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in result["results"]:
        print(f"{row['name']:<44}{row['tokens_per_second']:>8,} tokens/s (best {row['tokens_per_second_best']:,}), "
              f"loss {row['first_loss']:.3f} -> {row['last_loss']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
