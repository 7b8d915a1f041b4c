"""Training speed on this machine: Herd, `transformers`, litgpt and nanochat in one interleaved run.

    python benchmarks/train.py setup --peers DIR               # an environment for each peer, under DIR
    python benchmarks/train.py speed --peers DIR [--shape 7m|60m|125m] [--rounds 8] [--threads 2]
    python benchmarks/train.py losses --peers DIR [--shape 1m|7m] [--rounds 100] [--text FILES]    # three seeds

`losses` compares with transformers from the same weights on the same tokens: made by fixed rules, or of real text.

Every contestant runs in a process and an environment of its own and takes its turn of a step, so that whatever else the
machine does hits all of them; ratios are of medians. All but nanochat start from the same weights, see the same tokens
in the same order and do whole steps: forward, backward, clipping, AdamW. `herd:off` runs without Herd's C++ kernels, as
where there is no compiler. nanochat has its own architecture and optimizers at the same width and depth, and is
labelled so; it compiles its optimizers, so that `nanochat:eager` is PyTorch's switch TORCHDYNAMO_DISABLE.
Results go to benchmarks/results/train-*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from train_step import commit, hardware, text_rows, token_batches

from herd.formats import checkpoint
from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.model.init import initialize
from herd.model.llama import empty_model

HERE = Path(__file__).parent
NANOCHAT_COMMIT = "92d63d4e8bb4df75c3b71618f31ddde2378b2bcd"
PACKAGES = {  # the same PyTorch for all; what nanochat's own files import
    "transformers": ["torch==2.13.0", "transformers==5.23.0", "numpy"],
    "litgpt": ["torch==2.13.0", "litgpt==0.5.13", "numpy"],
    "nanochat": ["torch==2.13.0", "numpy", "filelock", "psutil", "kernels"],
}
VARIANTS = [
    "herd:off", "herd:auto", "herd:on", "transformers:eager", "transformers:compiled", "litgpt:eager",
    "litgpt:compiled", "nanochat:eager", "nanochat:compiled",
]  # fmt: skip


def shape(**sizes: int) -> ModelConfig:
    return ModelConfig(max_position_embeddings=512, tie_word_embeddings=True, **sizes)


SHAPES = {
    "1m": shape(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=384, vocab_size=1024),
    "7m": shape(hidden_size=256, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
                intermediate_size=768, vocab_size=4096),
    "60m": shape(hidden_size=576, num_hidden_layers=14, num_attention_heads=9, num_key_value_heads=3,
                 intermediate_size=1536, vocab_size=16384),
    "125m": shape(hidden_size=768, num_hidden_layers=14, num_attention_heads=12, num_key_value_heads=4,
                  intermediate_size=2304, vocab_size=32768),
}  # fmt: skip
ROWS, CONTEXT = 8, 512
SWITCHES = {"herd:off": {"HERD_NATIVE": "0"}, "nanochat:eager": {"TORCHDYNAMO_DISABLE": "1"}}
LEARNERS = ["herd:auto", "herd:off", "transformers:eager", "transformers:autocast"]


@dataclass
class Contestant:
    """A worker's process and what it has answered."""

    name: str
    process: subprocess.Popen
    error: str = ""
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def steps(self, count: int) -> None:
        if self.error:
            return
        try:
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
            found = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.error = fault(self.process.log)
            return
        self.seconds += found["seconds"]
        self.losses += found["losses"]
        self.peak_bytes = found["peak_bytes"]


def fault(log: Path) -> str:
    """The line of a worker's log that says what went wrong."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()] or ["no answer"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unsupported)\b", line)]
    return (named or lines)[-1]


def setup(peers: Path) -> None:
    for name, packages in PACKAGES.items():
        subprocess.run([sys.executable, "-m", "venv", peers / name], check=True)
        subprocess.run([peers / name / "bin" / "pip", "install", "--quiet", *packages], check=True)
    source = peers / "nanochat-source"
    if not source.exists():
        subprocess.run(["git", "clone", "--quiet", "https://github.com/karpathy/nanochat", source], check=True)
        subprocess.run(["git", "-C", source, "checkout", "--quiet", NANOCHAT_COMMIT], check=True)


def start(name: str, folder: Path, peers: Path, threads: int) -> Contestant:
    kind = name.split(":")[0]
    python = sys.executable if kind == "herd" else peers / kind / "bin" / "python"
    paths = {"herd": HERE.parent, "nanochat": peers / "nanochat-source"}
    environment = os.environ | {"PYTHONPATH": str(paths.get(kind, "")), "NANOCHAT_DTYPE": "bfloat16"}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "NANOCHAT_BASE_DIR": str(folder / "base")}
    environment |= SWITCHES.get(name, {})
    log = folder / f"{name.replace(':', '-')}.log"
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [python, HERE / "train_worker.py", name, folder, str(threads)],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    process.log = log
    found = Contestant(name, process)
    if not process.stdout.readline():
        process.wait()
        found.error = fault(log)
    return found


def prepare(folder: Path, config: ModelConfig, seed: int, steps: int, texts: Sequence[Path] = ()) -> None:
    model = empty_model(config, device="cpu")
    initialize(model, seed)
    checkpoint.save(model, folder / "start")
    if texts:
        tokens = text_batches(texts, config.vocab_size, steps, seed)
    else:
        tokens = np.stack([batch.numpy() for batch in token_batches(config, ROWS, CONTEXT, steps)])
    np.save(folder / "tokens.npy", tokens.astype(np.uint32))


def text_batches(files: Sequence[Path], vocabulary: int, steps: int, seed: int) -> np.ndarray:
    """Steps of rows of real text, in an order drawn with `seed`."""
    rows, _ = text_rows(files, vocabulary, CONTEXT)
    if len(rows) < steps * ROWS:
        sys.exit(f"the texts give {len(rows) // ROWS} steps, not {steps}")
    chosen = np.random.default_rng(seed).permutation(len(rows))[: steps * ROWS]
    return rows[chosen].reshape(steps, ROWS, CONTEXT + 1)


def speed(options: argparse.Namespace) -> None:
    config, steps = SHAPES[options.shape], options.rounds + options.warmup
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder, config, 0, steps)
        field_ = [start(name, folder, options.peers, options.threads) for name in options.only or VARIANTS]
        for _ in range(steps):
            for entry in field_:
                entry.steps(1)
        for entry in field_:
            entry.process.kill()
            entry.process.wait()
    machine = hardware(options.threads)
    peak = machine["matmul_bf16_gflops"] * 1e9
    rows = [summary(entry, options.warmup, config, peak) for entry in field_]
    result = about(options, machine) | {
        "shape": {"parameters": num_parameters(config), "context": CONTEXT, "tokens_per_step": ROWS * CONTEXT}
        | {k: v for k, v in config.to_dict().items() if k.endswith("_size") or k.startswith("num_")},
        "results": rows,
        "ratios": ratios(rows),
    }
    write(HERE / "results" / f"train-{options.shape}.json", result)
    for row in rows:
        print(row)
    print(result["ratios"])


def summary(entry: Contestant, warmup: int, config: ModelConfig, peak: float) -> dict:
    label = entry.name + (" (own architecture and optimizers)" if entry.name.startswith("nanochat") else "")
    if entry.error:
        return {"name": label, "error": entry.error}
    median = statistics.median(entry.seconds[warmup:])
    rate = ROWS * CONTEXT / median
    found = {
        "name": label,
        "tokens_per_second": round(rate),
        "step_milliseconds": round(1000 * median, 1),
        "peak_memory_megabytes": round(entry.peak_bytes / 1e6),
        "losses": [round(loss, 4) for loss in (entry.losses[0], entry.losses[-1])],
    }
    if not entry.name.startswith("nanochat"):
        found["mfu"] = round(rate * flops_per_token(config, CONTEXT) / peak, 3)
    return found


def ratios(rows: list[dict]) -> dict[str, float]:
    """Herd's tokens per second over those of the best peer of Llama's architecture."""
    rates = {row["name"]: row["tokens_per_second"] for row in rows if "error" not in row}
    found = {}
    for ours in [name for name in rates if name.startswith("herd")]:
        for kind in ("eager", "compiled"):
            theirs = [rate for name, rate in rates.items() if name in (f"transformers:{kind}", f"litgpt:{kind}")]
            if theirs:
                found[f"{ours} / best {kind} peer"] = round(rates[ours] / max(theirs), 2)
    return found


def losses(options: argparse.Namespace) -> None:
    """The losses of Herd and `transformers` from the same weights on the same tokens, for several initial weights.

    The peer trains with bfloat16 weights (`eager`) and with float32 weights under autocast. `herd:auto` and `herd:off`
    differ in rounding alone: what is between them is how far two runs of the same come apart.
    """
    config, rows, last = SHAPES[options.shape], [], max(10, options.rounds // 8)
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            prepare(folder, config, seed, options.rounds, options.text)
            found = [start(name, folder, options.peers, options.threads) for name in LEARNERS]
            for entry in found:
                entry.steps(options.rounds)
                entry.process.kill()
                if entry.error:
                    sys.exit(f"{entry.name}: {entry.error}")
        rows.append({"seed": seed} | {entry.name: statistics.mean(entry.losses[-last:]) for entry in found})
        print(rows[-1], flush=True)
    apart = {
        f"herd:auto over {name}": [round(100 * (row["herd:auto"] / row[name] - 1), 3) for row in rows]
        for name in LEARNERS[1:]
    }
    result = about(options, hardware(options.threads)) | {
        "shape": options.shape,
        "parameters": num_parameters(config),
        "steps": options.rounds,
        f"mean_loss_of_last_{last}_steps": rows,
        "percent_by_seed": apart,
        "percent_mean": {name: round(statistics.mean(values), 3) for name, values in apart.items()},
    }
    kind = "-text" if options.text else ""
    write(HERE / "results" / f"train-losses-{options.shape}{kind}.json", result)
    print(result["percent_mean"])


def about(options: argparse.Namespace, machine: dict) -> dict:
    texts = {str(file): file.name for file in options.text}
    words = [texts.get(word, word) for word in sys.argv[1:] if word != str(options.peers)]
    command = " ".join(words).replace("--peers", "--peers DIR")
    return {
        "benchmark": "train",
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": f"python benchmarks/train.py {command}",
        "hardware": machine,
        "versions": {name: packages[:2] for name, packages in PACKAGES.items()} | {"nanochat commit": NANOCHAT_COMMIT},
    }


def write(file: Path, result: dict) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["setup", "speed", "losses"])
    parser.add_argument("--peers", type=Path, required=True, help="where the peers' environments are")
    parser.add_argument("--shape", choices=SHAPES, default="7m")
    parser.add_argument("--seeds", type=int, default=3, help="of the initial weights (losses)")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="*.jsonl.gz to learn from (losses)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these contestants alone")
    options = parser.parse_args()
    {"setup": lambda o: setup(o.peers), "speed": speed, "losses": losses}[options.part](options)


if __name__ == "__main__":
    main()
