"""Training speed on one GPU: a Llama of 1B parameters at context 8192, in one command.

    python benchmarks/train_gpu.py [--layers 16] [--context 8192] [--rows 2] [--steps 12] [--dtype bf16 fp8]

    python benchmarks/train_gpu.py --run FOLDER --seconds 480           # a real run, in as many commands as it takes
    python benchmarks/train_gpu.py --tiny --device cpu [--run FOLDER]   # a rehearsal of the script itself

Random tokens, whole steps (forward, backward, clip, AdamW with float32 masters), blocks compiled. MFU counts 6 FLOPs a
matmul parameter (head included) and the causal half of attention, against 989 TFLOP/s (H100, H200; dense bf16); rows
are measured as one document each and as documents of mixed lengths, which attention does not pay for.
With `--run` the house's trainer learns a text that can be learned (counting up), saves its state and stops after so
many seconds; the same command goes on where it stopped, and the losses of all commands are noted as one curve.
Results go to benchmarks/results/train-gpu.json after each measurement.
"""

from __future__ import annotations

import _thread
import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from herd.config import settings
from herd.data.loader import PackedLoader, Phase
from herd.data.shards import in_memory
from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM, empty_model
from herd.run import open_run, read_metrics
from herd.train.compile import choose_float8, compile_model, recompute_layers
from herd.train.objectives import next_token
from herd.train.optimizer import FlatAdamW, OptimizerSettings
from herd.train.saving import SavingSettings
from herd.train.trainer import Trainer
from herd.types import Batch

PEAK_FLOPS = 989e12
WARMUP = 3


@settings
class RunSettings:
    """What a run of several commands must agree on."""

    context: int = 8192
    """Tokens of a row."""
    rows: int = 2
    """Rows of a micro-batch."""
    layers: int = 16
    """Layers of the model."""


def commit() -> str:
    """The commit that is checked out."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def measure(config: ModelConfig, dtype: str, documents: str, options: argparse.Namespace) -> dict:
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model = fresh_model(config, options.device)
    adamw = FlatAdamW(model, OptimizerSettings(learning_rate=1e-4))
    if dtype == "fp8":
        choose_float8(model, options.rows * options.context)
    recompute_layers(model, options.recompute)
    began = time.perf_counter()
    compiled = compile_model(model, "on" if on_gpu else "auto")
    batch = random_batch(config, documents, options).to(options.device)
    seconds, losses = [], []
    for _ in range(WARMUP + options.steps):
        synchronize(options.device)
        step_began = time.perf_counter()
        adamw.drop_gradients()
        loss = model.run(next_token, batch)
        loss.sum.backward()
        adamw.collect()
        count = loss.count.item()
        adamw.step(1e-4, count, adamw.norm(count))
        synchronize(options.device)
        seconds.append(time.perf_counter() - step_began)
        losses.append(loss.sum.item() / count)
    rate = options.rows * options.context / statistics.median(seconds[WARMUP:])
    return {
        "dtype": dtype,
        "documents": documents,
        "compiled": compiled,
        "graphs_compiled": torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) if on_gpu else 0,
        "seconds_to_first_step": round(step_began - began - sum(seconds[1:-1]), 1),
        "tokens_per_second": round(rate),
        "mfu": round(rate * flops_per_token(config, options.context) / PEAK_FLOPS, 3),
        "peak_memory_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 1) if on_gpu else None,
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
    }


def fresh_model(config: ModelConfig, device: str) -> LlamaForCausalLM:
    model = empty_model(config, device="cpu")
    initialize(model, seed=0)
    return model.to(device, torch.bfloat16).train()


def random_batch(config: ModelConfig, documents: str, options: argparse.Namespace) -> Batch:
    """Rows of one document, or of documents of 64 tokens up to half a row."""
    tokens = torch.randint(config.vocab_size, (options.rows, options.context + 1))
    ids = torch.zeros(options.rows, options.context, dtype=torch.int32)
    positions = torch.arange(options.context).repeat(options.rows, 1)
    generator = torch.Generator().manual_seed(0)
    for row in range(options.rows if documents == "mixed" else 0):
        start = 0
        while start < options.context:
            most = max(options.context // 2, 65)
            stop = min(start + int(torch.randint(64, most, (), generator=generator)), options.context)
            ids[row, start:stop], positions[row, start:stop] = start, torch.arange(stop - start)
            start = stop
    return Batch(tokens=tokens[:, :-1], labels=tokens[:, 1:], positions=positions, document_ids=ids)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def go_on(config: ModelConfig, options: argparse.Namespace) -> dict:
    """Some minutes of a run that may have begun in an earlier command; it ends as by Ctrl-C, its state saved."""
    model = fresh_model(config, options.device)
    compile_model(model, "auto")
    texts, chance = [], np.random.default_rng(0)
    for _ in range(400):
        length, start = chance.integers(options.context // 8, options.context), chance.integers(3, config.vocab_size)
        texts.append(np.r_[1, 3 + (start + np.arange(length)) % (config.vocab_size - 3), 2])
    tokens = options.rows * options.context
    phase = Phase(batch_tokens=2 * tokens, row_tokens=options.context, mixture={"counting": 1.0})
    loader = PackedLoader({"counting": in_memory("counting", texts)}, [phase], micro_tokens=tokens)
    settings_of_run = RunSettings(context=options.context, rows=options.rows, layers=options.layers)
    num_before = len(read_metrics(options.run))
    done = threading.Event()
    threading.Thread(target=interrupt, args=(options, num_before, done), daemon=True).start()
    try:
        with open_run(options.run, stage="train_gpu", settings=settings_of_run, inputs={}) as run:
            saving = SavingSettings(save_seconds=max(options.seconds / 4, 0.2))
            optimizer = OptimizerSettings(learning_rate=3e-4)
            trainer = Trainer(model, next_token, run, optimizer=optimizer, saving=saving, peak_flops=PEAK_FLOPS)
            trainer.fit(loader, options.run_steps)
    except KeyboardInterrupt:
        print("time is up: the same command goes on from here", flush=True)
    finally:
        done.set()
    rows = read_metrics(options.run)
    return {
        "lines_before": num_before,
        "reached_step": rows[-1]["step"],
        "losses": {row["step"]: round(row["loss"], 4) for row in rows[:: max(len(rows) // 40, 1)]},
    }


def interrupt(options: argparse.Namespace, num_before: int, done: threading.Event) -> None:
    """Press Ctrl-C when time is up, but not before there is a new step."""
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until or len(read_metrics(options.run)) <= num_before:
        if done.wait(0.1):
            return
    _thread.interrupt_main()


def model_config(options: argparse.Namespace) -> ModelConfig:
    """Llama 3.2 1B's shape, or a tiny one."""
    shape = {"vocab_size": 128256, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
             "intermediate_size": 8192}  # fmt: skip
    if options.tiny:
        shape = {"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "intermediate_size": 128}  # fmt: skip
    return ModelConfig(
        **shape, num_hidden_layers=options.layers, max_position_embeddings=options.context, tie_word_embeddings=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--recompute", type=int, default=0)
    parser.add_argument("--dtype", nargs="+", choices=["bf16", "fp8"], default=["bf16", "fp8"])
    parser.add_argument("--run", type=Path, help="go on with the run in this folder, instead of measuring")
    parser.add_argument("--run-steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=480, help="of a command with --run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers: rehearses the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train-gpu.json")
    options = parser.parse_args()
    if options.tiny:
        options.layers, options.context, options.rows, options.steps, options.dtype = 2, 256, 2, 2, ["bf16"]
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --tiny --device cpu rehearses the script, train.py measures a CPU")
    config = model_config(options)
    result = json.loads(options.out.read_text()) if options.out.exists() else {"benchmark": "train_gpu"}
    result |= {
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/train_gpu.py " + " ".join(sys.argv[1:]),
        "hardware": {
            "device": "cpu" if options.device == "cpu" else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "peak_flops": PEAK_FLOPS,
        },
        "shape": {"parameters": num_parameters(config), "context": options.context, "rows": options.rows},
    }
    if options.run is not None:
        result["run"] = go_on(config, options)
        write(options.out, result)
        return
    result["results"] = []
    for dtype in options.dtype:
        for documents in ("one", "mixed"):
            result["results"].append(measure(config, dtype, documents, options))
            write(options.out, result)


def write(file: Path, result: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("run") or result["results"][-1], indent=1), flush=True)


if __name__ == "__main__":
    main()
