"""Decoding and prompt speed on this CPU: Herd's engine beside `transformers` and llama.cpp, taking turns in one run.

    python -m venv LLAMA && CMAKE_ARGS="-DGGML_NATIVE=ON" LLAMA/bin/pip install --no-binary :all: llama-cpp-python
    python benchmarks/infer.py --prepare FOLDER --llamacpp LLAMA/bin/python
    OMP_WAIT_POLICY=PASSIVE python benchmarks/infer.py FOLDER [--tasks decode,prompt,many,context] [--rounds 3]

Weights are random, in Llama 3.2 1B's shape; answers are greedy and never stop early. `decode` is one answer at a time
after a short prompt; `prompt` is 512 new tokens; `many` is 16 requests at once, all tokens in and out counted;
`avx2` and `avx2-prompt` leave Herd no instructions that a processor without AVX-512 has not (build llama.cpp with
"-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" for them; wheels are such builds too); `context` decodes
behind a prompt of 8192 tokens, `long` behind one of 32,000; `files` and `files-prompt` open the same GGUF files of
SmolLM2-135M (`make base-model`: Q4_1) in both. Each contestant is a process of its own; they take turns and the median
of the turns counts. `start` (alone) times `herd chat` up to its first token; `cost` (alone) tells what a token costs
Herd behind 8192 and 32,000 others, turn by turn with short ones, beside the time in which plain reads fetch so many
keys and values. The rates of plain reads and of matmuls are measured in the same run. Results go to
benchmarks/results/infer-1b.json. `--without WORDS` leaves out contestants with these words in their names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import gguf
import torch

from herd.environment import environment
from herd.formats import checkpoint
from herd.formats.convert import convert
from herd.infer.engine import Engine
from herd.infer.quantize import quantize_folder
from herd.kernels import decoding
from herd.model.config import ModelConfig, num_parameters
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.ops.probe import best_seconds, matmul_rate
from herd.tokenizer import Tokenizer
from herd.types import SamplingParams

RESULTS = Path(__file__).parent / "results"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPE = ModelConfig(
    hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192,
    vocab_size=128_256, tie_word_embeddings=True, max_position_embeddings=16384, rope_theta=500_000.0,
)  # fmt: skip
CONTESTANTS = {
    "Herd bf16": ("herd", {"path": "bf16"}),
    "Herd int8": ("herd", {"path": "int8"}),
    "Herd int4": ("herd", {"path": "int4"}),
    "Herd bf16, no compiler": ("herd", {"path": "bf16", "native": "0"}),
    "Herd int8, no compiler": ("herd", {"path": "int8", "native": "0"}),
    "Herd int4, no compiler": ("herd", {"path": "int4", "native": "0"}),
    "Herd bf16, AVX2": ("herd", {"path": "bf16", "native": "avx2"}),
    "Herd int8, AVX2": ("herd", {"path": "int8", "native": "avx2"}),
    "Herd int4, AVX2": ("herd", {"path": "int4", "native": "avx2"}),
    "Herd bf16, int8 cache": ("herd", {"path": "bf16", "cache_dtype": "int8"}),
    "transformers bf16": ("transformers", {"path": "bf16"}),
    "llama.cpp BF16": ("llamacpp", {"file": "bf16.gguf"}),
    "llama.cpp Q8_0": ("llamacpp", {"file": "Q8_0.gguf"}),
    "llama.cpp Q4_0": ("llamacpp", {"file": "Q4_0.gguf"}),
} | {
    f"{name} SmolLM2 {type}": (kind, {key: f"smollm2-{type}.gguf"})
    for type in ("Q4_1", "Q8_0", "Q4_K_M")
    for name, kind, key in (("Herd", "herd", "path"), ("llama.cpp", "llamacpp", "file"))
}
FILES = tuple(name for name in CONTESTANTS if "SmolLM2" in name)
INSTRUCTIONS = {  # Linux's names and llama.cpp's
    name: name.upper() for name in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8")
} | {"avx512f": "AVX512"}
SWITCHES = {  # processors of another kind: PyTorch is told too
    "0": {"HERD_NATIVE": "0"},
    "avx2": {"HERD_NATIVE": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
TASKS = {  # prompts, tokens in, tokens out, what is counted, who takes part
    "decode": (1, 32, 33, "rest", ("Herd bf16", "Herd int8", "Herd int4", "Herd bf16, no compiler",
                                  "Herd int8, no compiler", "Herd int4, no compiler", "transformers bf16",
                                  "llama.cpp BF16", "llama.cpp Q8_0", "llama.cpp Q4_0")),
    "prompt": (1, 512, 1, "first", ("Herd bf16", "Herd int8", "Herd int4", "transformers bf16", "llama.cpp BF16",
                                    "llama.cpp Q4_0")),
    "avx2": (1, 32, 33, "rest", ("Herd bf16, AVX2", "Herd int8, AVX2", "Herd int4, AVX2", "llama.cpp BF16",
                                "llama.cpp Q8_0", "llama.cpp Q4_0")),
    "avx2-prompt": (1, 512, 1, "first", ("Herd bf16, AVX2", "Herd int4, AVX2", "llama.cpp BF16", "llama.cpp Q4_0")),
    "files": (1, 32, 97, "rest", FILES),
    "files-prompt": (1, 512, 1, "first", FILES),
    "many": (16, 256, 128, "all", ("Herd bf16", "Herd int4", "transformers bf16", "llama.cpp Q4_0")),
    "context": (1, 8192, 33, "rest", ("Herd bf16", "Herd bf16, int8 cache", "transformers bf16", "llama.cpp BF16")),
    "long": (1, 32_000, 33, "rest", ("Herd bf16", "Herd bf16, int8 cache")),
}  # fmt: skip


# ---- contestants: each a process that answers {"prompts": ..., "num_tokens": ...} with seconds -----------------------


def serve_herd(folder: Path, path: str, native: str = "", cache_dtype: str | None = None) -> None:
    if native != "0":
        decoding.wait()
    engine = Engine(folder / path, cache_bytes=2**31, cache_dtype=cache_dtype, max_context=33_000)
    engine.warm_up()

    def generate(prompts: list[list[int]], num_tokens: int) -> dict:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        requests = [engine.request(tokens, params) for tokens in prompts]
        began = time.perf_counter()
        for request in requests:
            engine.submit(request)
        while not all(request.leader.tokens for request in requests):
            engine.step()
        first = time.perf_counter()
        while engine.has_work:
            engine.step()
        return {"first": first - began, "rest": time.perf_counter() - first}

    answer_lines(generate, decoding.status())


def serve_transformers(folder: Path, path: str) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / path, dtype=torch.bfloat16)

    def generate(prompts: list[list[int]], num_tokens: int) -> dict:
        ids = torch.tensor(prompts)
        options = {"do_sample": False, "temperature": None, "top_p": None, "pad_token_id": 0, "eos_token_id": None}
        mask, seconds = torch.ones_like(ids), []
        for count in sorted({1, num_tokens}):
            began = time.perf_counter()
            model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, **options)
            seconds.append(time.perf_counter() - began)
        return {"first": seconds[0], "rest": seconds[-1] - seconds[0]}

    answer_lines(generate, f"transformers {transformers.__version__}")


def answer_lines(generate, status: str) -> None:
    print(json.dumps({"status": status}), flush=True)
    for line in sys.stdin:
        print(json.dumps(generate(**json.loads(line))), flush=True)


class Contestant:
    """A process and the pipe to it."""

    def __init__(self, kind: str, options: dict, folder: Path, threads: int, sequences: int, context: int) -> None:
        self.kind, environment_ = kind, dict(os.environ, OMP_NUM_THREADS=str(threads))
        environment_ |= SWITCHES.get(options.get("native"), {})
        command = [sys.executable, __file__, str(folder), "--contestant", json.dumps([kind, options])]
        if kind == "llamacpp":
            python = (folder / "llamacpp-python").read_text().strip()
            command = [python, "-P", str(Path(__file__).with_name("infer_llamacpp.py"))]
            for name in ("PYTHONPATH", "OMP_WAIT_POLICY"):  # its threads meet hundreds of times a token: they must spin
                environment_.pop(name, None)
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True, env=environment_)
        if kind == "llamacpp":
            load = {"do": "load", "file": str(folder / options["file"]), "context": context, "sequences": sequences}
            self._write(load | {"threads": threads})
        self.status = self._read()

    def generate(self, prompts: list[list[int]], num_tokens: int) -> dict:
        task = {"prompts": prompts, "num_tokens": num_tokens}
        self._write(task | ({"do": "generate"} if self.kind == "llamacpp" else {}))
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _write(self, task: dict) -> None:
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.kind} ended with {self._process.wait()}")
        return json.loads(line)


# ---- preparation -----------------------------------------------------------------------------------------------------


def prepare(folder: Path, llamacpp: str | None) -> None:
    """Random weights in every format, on disk, so that a run only measures."""
    folder.mkdir(parents=True, exist_ok=True)
    if real_model().is_file():
        shutil.copy(real_model(), folder / "smollm2-Q4_1.gguf")
        for file in (folder / "smollm2-Q8_0.gguf", folder / "smollm2-Q4_K_M.gguf"):
            if not file.exists():
                convert(real_model(), file, precision=file.stem.removeprefix("smollm2-").lower())
    model = LlamaForCausalLM(SHAPE)
    initialize(model, seed=0)
    model = model.bfloat16().eval()
    tokens = [bytes([i]) for i in range(256)] + [b"\xff" + i.to_bytes(3, "big") for i in range(127_744)]
    tokenizer = Tokenizer({token: rank for rank, token in enumerate(tokens)})  # a vocabulary of the right size
    checkpoint.save(model, folder / "bf16", tokenizer)
    for scheme in ("int8", "int4"):
        quantize_folder(folder / "bf16", folder / scheme, scheme)
    if llamacpp is None:
        return
    write_gguf(model, folder / "bf16.gguf")
    (folder / "llamacpp-python").write_text(llamacpp)
    script = str(Path(__file__).with_name("infer_llamacpp.py"))
    for kind in ("Q8_0", "Q4_0"):
        task = {"do": "quantize", "source": str(folder / "bf16.gguf"), "target": str(folder / f"{kind}.gguf")}
        lines = json.dumps(task | {"kind": kind}) + "\n"
        done = subprocess.run([llamacpp, "-P", script], input=lines, text=True, stdout=subprocess.PIPE, check=True)
        print(kind, done.stdout.strip())


def real_model() -> Path:
    """The file of `make base-model`."""
    return Path(os.environ.get("HERD_BASE_MODEL") or Path(__file__).parents[2] / "base-model") / SMOLLM2


def write_gguf(model: LlamaForCausalLM, file: Path) -> None:
    """The model for llama.cpp, without a vocabulary: it is driven by token ids."""
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied to the embedding
        target = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 1:
            writer.add_tensor(target, tensor.float().numpy())
        else:
            raw = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start(arguments: argparse.Namespace) -> None:
    """Seconds from the command `herd chat` to an answer of one token, the files in the system's cache."""
    seconds = {}
    for path in ("bf16", "int4"):
        command = [sys.executable, "-m", "herd", "chat", str(arguments.folder / path), "max_tokens=1", "json=true"]
        turns = []
        for _ in range(arguments.rounds + 1):  # the first one warms the disk's cache
            began = time.perf_counter()
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as chat:
                chat.stdin.write("x\n")
                chat.stdin.close()
                chat.stdout.readline()
                turns.append(round(time.perf_counter() - began, 2))
        seconds[f"Herd {path}"] = turns[1:]
    entry = {"seconds": {name: median(turns) for name, turns in seconds.items()}, "all_turns": seconds}
    save({"start": about(arguments) | entry})


def cost(arguments: argparse.Namespace) -> None:
    """What the context costs a token: the same prompts again and again, which are in the cache after the first time."""
    num_out, lengths, entry = 17, (32, 8192, 32_000), about(arguments)
    for name in ("Herd bf16", "Herd bf16, int8 cache"):
        contestant = Contestant(*CONTESTANTS[name], arguments.folder, arguments.threads, 1, 2**15)
        prompts = {length: torch.randint(0, 8192, (1, length), generator=_fresh).tolist() for length in lengths}
        milliseconds: dict[int, list[float]] = {length: [] for length in lengths}
        reads = []
        for turn in range(arguments.rounds + 1):
            for length, prompt in prompts.items():
                seconds = contestant.generate(prompt, num_out)["rest"]
                if turn:
                    milliseconds[length].append(1e3 * seconds / (num_out - 1))
            reads.append(plain_reads(0.1))
        contestant.close()
        entry[name] = context_costs(milliseconds, median(reads[1:]), 1 if "int8 cache" in name else 2)
        print(name, json.dumps(entry[name]), flush=True)
        save({"cost": entry})


def context_costs(milliseconds: dict[int, list[float]], reads: float, width: int) -> dict[str, object]:
    """A step's milliseconds, and what it takes more than a short one beside reading its keys and values."""
    short, *longer = milliseconds
    values = 2 * SHAPE.num_hidden_layers * SHAPE.num_key_value_heads * SHAPE.head_dim
    found: dict[str, object] = {"plain_reads_gbytes_per_second": round(reads, 1)}
    for length, turns in milliseconds.items():
        found[f"{length}_tokens"] = {"milliseconds": round(median(turns), 1), "turns": [round(one, 1) for one in turns]}
    for length in longer:
        more = median(far - near for far, near in zip(milliseconds[length], milliseconds[short], strict=True))
        found[f"{length}_tokens"] |= {
            "more_than_short": round(more, 1),
            "reading_its_keys_and_values": round(1e3 * values * width * length / (reads * 1e9), 1),
        }
    return found


ALONE = {"start": start, "cost": cost}


def run(arguments: argparse.Namespace) -> None:
    if arguments.tasks in ALONE:
        ALONE[arguments.tasks](arguments)
        return
    tasks = arguments.tasks.split(",")
    some = [name for name in CONTESTANTS if not (arguments.without and arguments.without in name)]
    wanted = [name for name in some if any(name in TASKS[task][4] for task in tasks)]
    sequences = max(TASKS[task][0] for task in tasks)
    context = sequences * (max(TASKS[task][1] + TASKS[task][2] for task in tasks) + 64)
    contestants = {
        name: Contestant(*CONTESTANTS[name], arguments.folder, arguments.threads, sequences, context)
        for name in wanted
        if CONTESTANTS[name][0] != "llamacpp" or (arguments.folder / "llamacpp-python").exists()
    }
    rates = {"reads": [], "matmul": []}
    speeds: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    reads: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}  # right after each turn
    statuses = {name: contestant.status for name, contestant in contestants.items()}
    began = time.perf_counter()
    for _ in range(arguments.rounds):
        if rates["reads"] and time.perf_counter() - began > arguments.seconds:
            break
        rates["reads"].append(plain_reads())
        rates["matmul"].append(matmul_rate(torch.bfloat16, 2048) / 1e9)
        for task in tasks:
            for name in TASKS[task][4]:
                if name not in contestants:
                    continue
                try:
                    speeds[task].setdefault(name, []).append(speed(contestants[name], task))
                    reads[task].setdefault(name, []).append(plain_reads())
                except (RuntimeError, OSError) as error:
                    statuses[name] = {"status": str(error)}
                    del contestants[name], speeds[task][name]
    for contestant in contestants.values():
        contestant.close()
    write(arguments, speeds, reads, rates, statuses)


def plain_reads(seconds: float = 0.3) -> float:
    """How fast PyTorch reads memory here, in GB/s: the largest of half a gigabyte of numbers."""
    numbers = torch.ones(2**27)
    return numbers.nbytes / best_seconds(numbers.amax, seconds, "cpu") / 1e9


_fresh = torch.Generator().manual_seed(0)


def speed(contestant: Contestant, task: str) -> float:
    """Tokens a second, of prompts that no cache has seen."""
    num_prompts, num_in, num_out, counted, _ = TASKS[task]
    prompts = torch.randint(0, 8192, (num_prompts, num_in), generator=_fresh).tolist()
    seconds = contestant.generate(prompts, num_out)
    if counted == "rest":
        return (num_out - 1) * num_prompts / seconds["rest"]
    if counted == "first":
        return num_in * num_prompts / seconds["first"]
    return num_prompts * (num_in + num_out) / (seconds["first"] + seconds["rest"])


def write(arguments: argparse.Namespace, speeds: dict, reads: dict, rates: dict, statuses: dict) -> None:
    entries = {}
    for task, by_name in speeds.items():
        entries[task] = about(arguments) | {
            "plain_reads_gbytes_per_second": round(median(rates["reads"]), 1),
            "matmul_bf16_gflops": round(median(rates["matmul"])),
            "tokens_per_second": {name: round(median(found), 2) for name, found in by_name.items()},
            "all_turns": {name: [round(one, 2) for one in found] for name, found in by_name.items()},
            "plain_reads_after_each_turn": {n: [round(one, 1) for one in found] for n, found in reads[task].items()},
            "llama_cpp_build": peer_build(statuses),
            "paths": {name: found.get("status") or found.get("system") for name, found in statuses.items()},
        }
    save(entries)
    print(f"llama.cpp: {peer_build(statuses)}", file=sys.stderr)
    print(json.dumps({task: entries[task]["tokens_per_second"] for task in speeds}, indent=1))
    print(json.dumps(rates))


def peer_build(statuses: dict[str, dict]) -> str | None:
    """For which instructions the llama.cpp was built that was measured, and which of this processor's it leaves out."""
    system = next((found["system"] for found in statuses.values() if found.get("system")), None)
    if system is None:
        return None
    built = set(re.findall(r"(\w+) = 1", system))
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    unused = [name for flag, name in INSTRUCTIONS.items() if flag in flags and name not in built]
    widest = "AVX-512" if "AVX512" in built else "AVX2" if "AVX2" in built else "no wide instructions"
    return f"{widest}, without this processor's {', '.join(unused)}" if unused else f"{widest}, native"


def about(arguments: argparse.Namespace) -> dict:
    """What a figure needs beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": str(date.today()),
        "commit": commit,
        "command": " ".join(["python benchmarks/infer.py FOLDER", *sys.argv[2:]]),
        "cpu": environment()["processor"],
        "threads": arguments.threads,
        "torch": torch.__version__,
    }


def save(entries: dict[str, dict]) -> None:
    """Put the entries of this run beside those of others."""
    file = RESULTS / "infer-1b.json"
    result = json.loads(file.read_text()) if file.exists() else {"benchmark": "infer", "runs": {}}
    result["runs"] |= entries
    result["shape"] = {"name": "Llama 3.2 1B, random weights", "parameters": num_parameters(SHAPE)}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--llamacpp", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--tasks", default="decode,prompt")
    parser.add_argument("--without", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600, help="no new round after so many seconds")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.prepare:
        prepare(arguments.prepare, arguments.llamacpp)
    elif arguments.contestant:
        kind, options = json.loads(arguments.contestant)
        {"herd": serve_herd, "transformers": serve_transformers}[kind](arguments.folder, **options)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
