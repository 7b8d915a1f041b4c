"""Decoding and prompt speed on this CPU: Herd's engine beside `transformers`, taking turns in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/infer.py [--shape demo|1b] [--rounds 3] [--threads 2]

Weights are random, bfloat16; answers are greedy and never stop early. `decode` is one answer at a time after a short
prompt; `prompt` is 512 tokens of new prompt; `many` is 16 requests at once, 256 tokens in and 128 out (a quarter of
that for 1b), all tokens in and out counted. The bandwidth and matmul rates measured in the same run stand beside.
Results go to benchmarks/results/infer-<shape>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import torch
import transformers

from herd.infer.engine import Engine, quantize_layers
from herd.model import checkpoint
from herd.model.config import ModelConfig, num_parameters
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.ops.probe import matmul_rate, memory_bandwidth
from herd.run import environment
from herd.tokenizer import Tokenizer
from herd.types import SamplingParams

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "demo": ModelConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, intermediate_size=704,
        vocab_size=8192, tie_word_embeddings=True, max_position_embeddings=1024,
    ),
    "1b": ModelConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192,
        vocab_size=128_256, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
}  # fmt: skip
DECODE = {"demo": 64, "1b": 16}  # tokens a turn
MANY = {"demo": (16, 256, 128), "1b": (16, 64, 32)}  # requests, tokens in, tokens out


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    config = SHAPES[arguments.shape]
    with tempfile.TemporaryDirectory() as folder:
        contestants = build(config, Path(folder))
    tasks = {
        "decode": lambda generate: (DECODE[arguments.shape], generate([prompt(32)], DECODE[arguments.shape])),
        "prompt": lambda generate: (512, generate([prompt(512)], 1)),
        "many": lambda generate: many(generate, *MANY[arguments.shape]),
    }
    speeds = {task: {name: [] for name in contestants} for task in tasks}
    for _ in range(arguments.rounds):
        for task, work in tasks.items():
            for name, generate in contestants.items():
                speeds[task][name].append(timed(work, generate))
    write(arguments, config, {task: {n: round(median(s), 1) for n, s in by.items()} for task, by in speeds.items()})


def build(config: ModelConfig, folder: Path) -> dict[str, Callable[[list[list[int]], int], None]]:
    """Each contestant: a function that answers prompts of token ids with so many tokens."""
    model = LlamaForCausalLM(config)
    initialize(model, seed=0)
    model = model.bfloat16().eval()
    checkpoint.save(model, folder / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    int8 = checkpoint.load(folder / "model")
    quantize_layers(int8, "int8")
    return {
        "Herd bf16": herd(model),
        "Herd int8": herd(int8),
        f"transformers {transformers.__version__} bf16": hugging_face(theirs),
    }


def herd(model: LlamaForCausalLM) -> Callable[[list[list[int]], int], None]:
    engine = Engine.of(model, Tokenizer.train(["some text"], 600), cache_bytes=2**30)
    engine.stop_ids = frozenset()

    def generate(prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=num_tokens)
        requests = [engine.request(tokens, params) for tokens in prompts]
        for request in requests:
            engine.submit(request)
        while engine.has_work:
            engine.step()

    return generate


def hugging_face(model: transformers.PreTrainedModel) -> Callable[[list[list[int]], int], None]:
    def generate(prompts: list[list[int]], num_tokens: int) -> None:
        model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.int64),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            pad_token_id=0,
        )

    return generate


_fresh = torch.Generator().manual_seed(0)


def prompt(num_tokens: int) -> list[int]:
    """Tokens that no cache has seen."""
    return torch.randint(0, 8192, (num_tokens,), generator=_fresh).tolist()


def many(generate: Callable, num_requests: int, num_in: int, num_out: int) -> tuple[int, None]:
    generate([prompt(num_in) for _ in range(num_requests)], num_out)
    return num_requests * (num_in + num_out), None


def timed(work: Callable, generate: Callable) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    num_tokens, _ = work(generate)
    return num_tokens / (time.perf_counter() - began)


def write(arguments: argparse.Namespace, config: ModelConfig, speeds: dict[str, dict[str, float]]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "benchmark": "infer",
        "date": str(date.today()),
        "commit": commit,
        "command": f"python benchmarks/infer.py --shape {arguments.shape} --rounds {arguments.rounds}",
        "hardware": {
            "cpu": environment()["processor"],
            "threads": arguments.threads,
            "matmul_bf16_gflops": round(matmul_rate(torch.bfloat16) / 1e9),
            "bandwidth_gbytes_per_second": round(memory_bandwidth() / 1e9, 1),
            "load_average": round(os.getloadavg()[0], 1),
            "torch": torch.__version__,
        },
        "shape": {"name": arguments.shape, "parameters": num_parameters(config)},
        "tokens_per_second": speeds,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"infer-{arguments.shape}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
