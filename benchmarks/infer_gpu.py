"""The engine on one GPU, in one command of at most nine minutes: Llama 3.1 8B's and 3.2 1B's shapes, random weights.

    python benchmarks/infer_gpu.py                                   # everything, results written after each task
    python benchmarks/infer_gpu.py --tasks limits,decode --seconds 200
    python benchmarks/infer_gpu.py --tiny --device cpu               # a rehearsal of the script itself, in seconds

limits   bytes a second of a large copy (read and written counted) and bf16 products a second, measured
kernels  one token through each of 8B's layer shapes, by kind of weight: microseconds, and the share of the bandwidth
decode   8B, one sequence: tokens a second by kind of weight, graphs on and off, and the share of what the bandwidth
         allows (bytes of weights and keys read for a token, over the measured bandwidth)
context  the same behind 8K and 32K tokens, cache in bf16 and int8
many     256 requests of 100 to 1024 tokens in and out, 1B and 8B: Herd, and `transformers` in a process of its own
start    from the command to the first token, 1B from a warm disk
Memory beside weights and stated cache is noted with `many`. Needs torch, numpy, pydantic, pyyaml, safetensors,
tiktoken and tokenizers; triton and transformers are used where they are.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

from herd.environment import environment
from herd.formats import checkpoint
from herd.infer.build import quantize_layers, with_attention
from herd.infer.engine import Engine
from herd.kernels import device as device_kernels
from herd.model.config import ModelConfig, num_parameters
from herd.model.llama import LlamaForCausalLM, empty_model
from herd.ops.fp8 import fp8_linear, quantize_fp8
from herd.ops.paged_attention import paged_attention
from herd.ops.probe import best_seconds, matmul_rate, memory_bandwidth
from herd.ops.quantized import int4_linear, quantize_groups, quantize_rows, quantized_linear
from herd.tokenizer import Tokenizer
from herd.types import SamplingParams

RESULTS = Path(__file__).parent / "results" / "infer-gpu.json"
SHAPES = {
    "8B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14336, "vocab_size": 128_256},
    "1B": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192, "vocab_size": 128_256, "tie_word_embeddings": True},
}  # fmt: skip
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 512}  # fmt: skip
TASKS = ("limits", "kernels", "decode", "context", "many", "start")
SCHEMES = (None, "int8", "int4", "fp8")
TRANSFORMERS_SECONDS = 120


class Bench:
    """What the tasks share: sizes, the device, the measured bandwidth."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.tiny, self.alone = options.device, options.tiny, options.alone
        self.until = time.perf_counter() + options.seconds
        self.bandwidth: float | None = None
        self.seconds_a_measurement = 0.02 if self.tiny else 0.3

    @property
    def seconds_left(self) -> float:
        return self.until - time.perf_counter()

    def config(self, name: str, context: int = 40_960) -> ModelConfig:
        return ModelConfig(**(TINY if self.tiny else SHAPES[name]), max_position_embeddings=context, rope_theta=5e5)

    def model(self, config: ModelConfig) -> LlamaForCausalLM:
        """Random weights, drawn where they will be used."""
        model = empty_model(config, paged_attention, device=self.device).to(torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.02)
                else:
                    parameter.fill_(1)
        model.tie_weights()
        return model.eval()

    def engine(self, model: LlamaForCausalLM, graphs: bool = True, **options) -> Engine:
        return Engine.of(model, self.tokenizer(model.config.vocab_size), graphs=graphs, **options)

    @staticmethod
    def tokenizer(vocab_size: int) -> Tokenizer:
        """A vocabulary that does not exceed the model's."""
        tokens = [bytes([i]) for i in range(256)]
        tokens += [b"\xff" + i.to_bytes(3, "big") for i in range(max(vocab_size - 512, 0))]
        return Tokenizer({token: rank for rank, token in enumerate(tokens)})

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def count(self, real: int, tiny: int) -> int:
        return tiny if self.tiny else real


def prompts_of(lengths: list[int], vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, min(vocab_size, 8192), (length,), generator=generator).tolist() for length in lengths]


# ---- tasks -----------------------------------------------------------------------------------------------------------


def limits(bench: Bench) -> dict:
    bandwidth = measured_bandwidth(bench)
    rate = matmul_rate(torch.bfloat16, bench.count(8192, 128), bench.seconds_a_measurement, bench.device)
    return {"gbytes_per_second": round(bandwidth / 1e9, 1), "bf16_tflops": round(rate / 1e12, 2)}


def measured_bandwidth(bench: Bench) -> float:
    if bench.bandwidth is None:
        bench.bandwidth = memory_bandwidth(bench.seconds_a_measurement, bench.device, bench.count(4096, 8))
    return bench.bandwidth


def kernels(bench: Bench) -> dict:
    """Each product alone, on copies of the weight that together outgrow every cache."""
    config, found = bench.config("8B"), {}
    hidden, wide = config.hidden_size, config.intermediate_size
    heads = config.num_key_value_heads * config.head_dim
    for rows, inner in ((hidden, hidden), (heads, hidden), (wide, hidden), (hidden, wide), (config.vocab_size, hidden)):
        weight = torch.randn(rows, inner, device=bench.device).mul_(0.02)
        num_copies = 1 if bench.tiny else max(2**28 // weight.numel(), 1)
        x = torch.randn(1, inner, device=bench.device, dtype=torch.bfloat16)
        kinds: dict[str, tuple[Callable, tuple]] = {
            "bf16": (F.linear, (weight.bfloat16(),)),
            "int8": (quantized_linear, quantize_rows(weight)),
            "int4": (int4_linear, quantize_groups(weight)),
            "fp8": (fp8_linear, quantize_fp8(weight)),
        }
        for kind, (product, parts) in kinds.items():
            copies = [tuple(part.clone() for part in parts) for _ in range(num_copies)]
            with torch.inference_mode(), device_kernels.waiting():
                seconds = repeated(bench, lambda: [product(x, *copy) for copy in copies]) / num_copies  # noqa: B023
            share = sum(part.nbytes for part in parts) / seconds / measured_bandwidth(bench)
            found[f"{rows} x {inner} {kind}"] = {"us": round(seconds * 1e6, 2), "share_of_bandwidth": round(share, 3)}
    return found


def repeated(bench: Bench, work: Callable[[], object]) -> float:
    """Seconds of some work, as a graph where there is a GPU, so that launching is not what is measured."""
    if bench.device == "cpu":
        return best_seconds(work, bench.seconds_a_measurement, "cpu")
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return best_seconds(graph.replay, bench.seconds_a_measurement, bench.device)


def decode(bench: Bench) -> dict:
    """One sequence, 32 tokens in; after a warm-up that waits for kernels and graphs."""
    model, found = bench.model(bench.config("8B")), {}
    for scheme in SCHEMES:
        own = with_attention(model, paged_attention)
        if scheme is not None:
            quantize_layers(own, scheme)
        for graphs in (True, False):
            engine = bench.engine(own, graphs, max_sequences=1, cache_bytes=bench.count(2**30, 2**22))
            rate = decoding_rate(bench, engine, 32)
            found[f"{scheme or 'bf16'}, {'graphs' if graphs else 'launch by launch'}"] = rate | {
                "kernels": device_kernels.status(torch.device(bench.device)),
                "graphs": engine.loop.runner.graphs.shapes if graphs else [],
            }
    return found


def context(bench: Bench) -> dict:
    model, found = bench.model(bench.config("8B")), {}
    for cache_dtype in (None, "int8"):
        engine = bench.engine(
            model, max_sequences=1, cache_bytes=bench.count(6 * 2**30, 2**23), cache_dtype=cache_dtype
        )
        for length in (8192, 32_768) if not bench.tiny else (64, 200):
            found[f"{length} tokens, {cache_dtype or 'bf16'} cache"] = decoding_rate(bench, engine, length)
    return found


def decoding_rate(bench: Bench, engine: Engine, num_in: int) -> dict:
    """Tokens a second behind a prompt, and the share of what reading weights and keys would allow."""
    num_out, speeds, first = bench.count(129, 9), [], []
    for turn in range(3):
        warm_up = turn == 0
        params = SamplingParams(temperature=0, max_tokens=num_out, ignore_eos=True)
        request = engine.request(prompts_of([num_in], engine.model.config.vocab_size, turn)[0], params)
        engine.submit(request)
        began = time.perf_counter()
        with device_kernels.waiting(warm_up):
            while not request.leader.tokens:
                engine.step()
            first.append(time.perf_counter() - began)
            began = time.perf_counter()
            while not request.finished:
                engine.step()
        bench.synchronize()
        speeds.append((num_out - 1) / (time.perf_counter() - began))
    rate = max(speeds[1:])
    model, cache = engine.model, engine.loop.runner.cache
    read = sum(p.nbytes for p in [*model.parameters(), *model.buffers()])
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        read -= model.model.embed_tokens.weight.nbytes  # of which a token reads one row
    read += cache.nbytes / (cache.num_blocks * cache.block_size) * (num_in + num_out / 2)
    return {
        "tokens_per_second": round(rate, 1),
        "share_of_bandwidth_limit": round(rate * read / measured_bandwidth(bench), 3),
        "first_token_seconds": round(min(first[1:]), 4),
        "gbytes_per_token": round(read / 1e9, 3),
    }


def many(bench: Bench) -> dict:
    """Total tokens a second of a crowd, and what memory it took beside weights and cache."""
    found, chance = {}, random.Random(0)
    least, most = (100, 1024) if not bench.tiny else (4, 12)
    sizes = [(chance.randint(least, most), chance.randint(least, most)) for _ in range(bench.count(256, 6))]
    num_tokens = sum(map(sum, sizes))
    for name in ("1B", "8B"):
        config = bench.config(name, 2 * most + 64)
        for scheme in (None, "fp8") if name == "8B" else (None,):
            model = bench.model(config)
            if scheme is not None:
                quantize_layers(model, scheme)
            engine = bench.engine(model, max_sequences=256, cache_bytes=bench.count(40 * 2**30, 2**22))
            seconds, spare = crowd(bench, engine, sizes)
            found[f"Herd {name} {scheme or 'bf16'}"] = {
                "tokens_per_second": round(num_tokens / seconds),
                "seconds": round(seconds, 2),
                "gbytes_beside_weights_and_cache": spare,
                "graphs_replayed": engine.loop.runner.graphs.num_replayed,
                "steps_without": engine.loop.runner.graphs.num_missed,
            }
            del engine, model
        if not bench.alone and bench.seconds_left > TRANSFORMERS_SECONDS:
            if bench.device != "cpu":
                torch.cuda.empty_cache()
            for way in ("batch", "continuous"):
                found[f"transformers {name} bf16, {way}"] = in_transformers(bench, config, sizes, way)
    return found


def crowd(bench: Bench, engine: Engine, sizes: list[tuple[int, int]]) -> tuple[float, float | None]:
    """Seconds of the second of two turns, and the peak of memory beside weights and cache in GB."""
    vocab_size = engine.model.config.vocab_size
    for turn in range(2):
        prompts = prompts_of([num_in for num_in, _ in sizes], vocab_size, turn)
        if bench.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for prompt, (_, num_out) in zip(prompts, sizes, strict=True):
            engine.submit(engine.request(prompt, SamplingParams(temperature=0, max_tokens=num_out, ignore_eos=True)))
        while engine.has_work:
            engine.step()
        bench.synchronize()
        seconds = time.perf_counter() - began
    if bench.device == "cpu":
        return seconds, None
    weights = sum(p.nbytes for p in [*engine.model.parameters(), *engine.model.buffers()])
    return seconds, round((torch.cuda.max_memory_allocated() - weights - engine.cache_bytes) / 1e9, 2)


def in_transformers(bench: Bench, config: ModelConfig, sizes: list[tuple[int, int]], way: str) -> dict:
    task = json.dumps({"config": config.to_dict(), "sizes": sizes, "way": way, "device": bench.device})
    command = [sys.executable, __file__, "--peer"]
    try:
        done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=TRANSFORMERS_SECONDS)
    except subprocess.TimeoutExpired:
        return {"fault": f"not done in {TRANSFORMERS_SECONDS} seconds"}
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"fault": done.stderr.strip()[-300:]}


def peer() -> None:
    """The same crowd in `transformers`: one padded batch that runs to the longest answer, or continuous batching."""
    task = json.loads(sys.stdin.read())
    import transformers

    config = transformers.LlamaConfig(**{k: v for k, v in task["config"].items() if k != "architectures"})
    with torch.device(task["device"]):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    sizes = task["sizes"]
    prompts = prompts_of([num_in for num_in, _ in sizes], config.vocab_size, 1)
    longest, most_out = max(map(len, prompts)), max(num_out for _, num_out in sizes)
    began = time.perf_counter()
    if task["way"] == "batch":
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=task["device"])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=task["device"])
        model.generate(
            ids, attention_mask=mask, max_new_tokens=most_out, min_new_tokens=most_out, do_sample=False, pad_token_id=0
        ).cpu()
    else:
        settings = transformers.GenerationConfig(
            max_new_tokens=most_out, do_sample=False, pad_token_id=0, eos_token_id=-1
        )
        if len(model.generate_batch(prompts, generation_config=settings)) != len(prompts):
            raise RuntimeError("not all requests were answered")
    seconds = time.perf_counter() - began
    wanted = sum(map(sum, sizes))
    print(json.dumps({"tokens_per_second": round(wanted / seconds), "seconds": round(seconds, 2),
                      "note": "all answers as long as the longest; only wanted tokens counted",
                      "version": transformers.__version__}))  # fmt: skip


def start(bench: Bench) -> dict:
    """A process of its own, twice: the first turn warms the disk."""
    code = (
        "import sys, herd; engine = herd.Engine(sys.argv[1], device=sys.argv[2], cache_bytes=2**28);"
        "engine.generate('x', herd.SamplingParams(max_tokens=1, temperature=0))"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = bench.model(bench.config("1B"))
        checkpoint.save(model, Path(folder) / "model", bench.tokenizer(model.config.vocab_size))
        seconds = []
        for _ in range(bench.count(3, 1)):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, f"{folder}/model", bench.device], check=True)
            seconds.append(round(time.perf_counter() - began, 2))
    return {"command_to_first_token_seconds": min(seconds), "all_turns": seconds}


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict:
    bench = Bench(options)
    result = json.loads(options.out.read_text()) if options.out.exists() else {"benchmark": "infer_gpu", "runs": {}}
    result["parameters"] = {name: num_parameters(bench.config(name)) for name in SHAPES}
    for task in options.tasks.split(","):
        if bench.seconds_left < 10:
            print(f"{task}: no time left", flush=True)
            continue
        began = time.perf_counter()
        try:
            found = globals()[task](bench)
        except RuntimeError as error:  # one task that fails leaves the others their time
            found = {"fault": str(error)[:300]}
        seconds = round(time.perf_counter() - began, 1)
        result["runs"][task] = about(options) | {"seconds": seconds, "found": found}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{task} ({seconds} s)", json.dumps(found, indent=1), flush=True)
        if options.device != "cpu":
            torch.cuda.empty_cache()
    return result


def about(options: argparse.Namespace) -> dict:
    """What a figure needs beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": str(date.today()),
        "commit": commit,
        "command": "python benchmarks/infer_gpu.py " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else environment()["processor"],
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seconds", type=float, default=520, help="no new task after so many seconds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of a few layers: rehearses the script")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer()
        return
    unknown = [task for task in options.tasks.split(",") if task not in TASKS]
    if unknown:
        parser.error(f"no such task: {', '.join(unknown)} (known: {', '.join(TASKS)})")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --tiny --device cpu rehearses the script")
    run(options)


if __name__ == "__main__":
    main()
