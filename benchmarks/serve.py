"""What the server costs beside the engine alone; requests per second beside `transformers serve` and llama.cpp's.

    python benchmarks/serve.py [--rounds 3] [--before COMMIT]

All run the demo's shape with random weights in bfloat16, greedy, chat answers of 64 tokens, taking turns in one run.
`one` is a client alone with a streamed answer; `many` is 16 clients at once. The engine alone is called in this
process; the servers are processes of their own, reached over localhost, with the clients in this process taking their
share of the same cores. Medians of the rounds go to benchmarks/results/serve.json. With `--before`, the server as it
was at a commit takes its turns too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import torch
import transformers

from herd.environment import environment
from herd.formats.checkpoint import save
from herd.infer.engine import Engine
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer import Tokenizer
from herd.types import SamplingParams
from tests.serve.load import serving

RESULTS = Path(__file__).parent / "results" / "serve.json"
TOKENS, CLIENTS, PORT = 64, 16, 18765
SETTINGS = {"max_tokens": TOKENS, "temperature": 0}
Run = Callable[[int], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help="a commit whose server is measured beside this one")
    given = parser.parse_args()
    rounds, measured = given.rounds, commit()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place) / "model"
        build(folder)
        contestants: dict[str, Run] = {"engine alone": alone(folder)}
        herd = stack.enter_context(serving(folder, threads=None))
        contestants["herd serve"] = over_http(herd.url, "model")
        if given.before:
            earlier = stack.enter_context(checked_out(given.before))
            words = ["herd", "serve", str(folder), "name=model", "log.form=off"]
            command = ["env", f"PYTHONPATH={earlier}", sys.executable, "-m", *words, f"port={PORT - 1}"]
            before = stack.enter_context(peer(command, PORT - 1, in_words=True))
            contestants[f"herd serve at {given.before}"] = over_http(before, "model")
        failed = {}
        for number, (name, command) in enumerate(peers(folder).items()):
            try:
                contestants[name] = over_http(stack.enter_context(peer(command, PORT + number)), str(folder))
            except (OSError, RuntimeError, httpx.HTTPError) as error:
                failed[name] = str(error)[-400:]
        figures = measure(contestants, rounds, failed)
    write(figures, failed, rounds, measured)


LLAMA_CPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = sys.argv[1], int(sys.argv[2]), 16, 16 * 1024
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
params.use_jinja = True
server = xllamacpp.Server(params)
time.sleep(3600)
"""


def peers(folder: Path) -> dict[str, list[str]]:
    """The other servers' commands; they listen on the port that is put after each."""
    transformers_ = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    converted = folder.with_suffix(".gguf")
    subprocess.run([sys.executable, "-m", "herd", "convert", str(folder), str(converted)], check=True)
    return {
        "transformers serve": [*transformers_, "--port"],
        "transformers serve --continuous-batching": [*transformers_, "--continuous-batching", "--port"],
        "llama.cpp server": [sys.executable, "-c", LLAMA_CPP, str(converted)],
    }


def build(folder: Path) -> None:
    """A model of the demo's shape that was declared to speak chat."""
    words = [f"word{number} of {number * 7919} texts about llamas and paths" for number in range(4000)]
    tokenizer = Tokenizer.train(words, 2000)
    config = ModelConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, intermediate_size=704,
        vocab_size=tokenizer.vocab_size, tie_word_embeddings=True, max_position_embeddings=1024,
        eos_token_id=list(tokenizer.stop_ids),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    save(model.to(torch.bfloat16), folder, tokenizer)


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number} about llamas and paths."}]


def alone(folder: Path) -> Run:
    """The engine called from Python."""
    engine = Engine(folder)
    params = SamplingParams(**SETTINGS)

    def run(clients: int) -> dict[str, float]:
        began = time.perf_counter()
        answers = engine.generate([messages(number) for number in range(clients)], params)
        return rates(sum(len(answer.tokens) for answer in answers), clients, time.perf_counter() - began)

    return run


def over_http(url: str, model: str) -> Run:
    """Clients that stream from a server."""

    async def ask(client: httpx.AsyncClient, number: int) -> tuple[int, float]:
        body = {"model": model, "messages": messages(number), "stream": True, **SETTINGS}
        count, first, began = 0, 0.0, time.perf_counter()
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if event.get("choices") and event["choices"][0]["delta"].get("content"):
                        first = first or time.perf_counter() - began
                        count += 1
        return count, first

    async def ask_all(clients: int) -> dict[str, float]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            began = time.perf_counter()
            answers = await asyncio.gather(*(ask(client, number) for number in range(clients)))
            seconds = time.perf_counter() - began
        found = rates(clients * TOKENS, clients, seconds)
        return found | {"first_token_ms": median(first for _, first in answers) * 1e3}

    return lambda clients: asyncio.run(ask_all(clients))


def rates(tokens: int, clients: int, seconds: float) -> dict[str, float]:
    return {"tokens_per_second": tokens / seconds, "requests_per_second": clients / seconds}


@contextmanager
def peer(command: list[str], port: int, *, in_words: bool = False) -> Iterator[str]:
    """Another server on a port, which stands behind its words unless it is in them.

    Raises:
        RuntimeError: it does not answer.
    """
    with tempfile.TemporaryFile("w+") as told:
        environment_ = os.environ | {"HF_HUB_OFFLINE": "1"}
        words = command if in_words else [*command, str(port)]
        process = subprocess.Popen(words, stdout=told, stderr=told, env=environment_, cwd=tempfile.gettempdir())
        try:
            url, until = f"http://localhost:{port}", time.monotonic() + 90
            while True:
                try:
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
                if process.poll() is not None or time.monotonic() > until:
                    told.seek(0)
                    raise RuntimeError(re.sub(r"\s+", " ", told.read())[-400:] or "no answer")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(contestants: dict[str, Run], rounds: int, failed: dict[str, str]) -> dict[str, dict]:
    """Medians over the rounds, everyone in turn; who fails is noted and left out from then on."""
    found: dict[str, dict[str, list[dict]]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for name, run in list(contestants.items()):
            for task, clients in (("one", 1), ("many", CLIENTS)):
                try:
                    result = run(clients)
                except (RuntimeError, httpx.HTTPError) as error:
                    failed[name] = repr(error)[-400:]
                    del contestants[name]
                    break
                if number:
                    found.setdefault(task, {}).setdefault(name, []).append(result)
    return {
        task: {
            name: {figure: round(median(r[figure] for r in results), 1) for figure in results[0]}
            for name, results in by_name.items()
        }
        for task, by_name in found.items()
    }


def write(figures: dict[str, dict], failed: dict[str, str], rounds: int, measured: str) -> None:
    machine = environment()
    seconds = {task: {n: 1e6 / r["tokens_per_second"] for n, r in by.items()} for task, by in figures.items()}
    entry = {
        "benchmark": "serve",
        "date": date.today().isoformat(),
        "commit": measured,
        "command": f"python benchmarks/serve.py --rounds {rounds}",
        "hardware": {"cpu": machine["processor"], "cores": machine["cores"], "torch": machine["packages"]["torch"]},
        "load_average": round(os.getloadavg()[0], 1),
        "transformers": transformers.__version__,
        "figures": figures,
        "server_overhead_us_per_token": {
            task: round(by["herd serve"] - by["engine alone"], 1) for task, by in seconds.items() if "herd serve" in by
        },
        "failed": failed,
    }
    RESULTS.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(entry, indent=1))


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of a commit, in a folder of their own."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(
            ["git", "worktree", "add", "--detach", place, revision], cwd=root, check=True, capture_output=True
        )
        try:
            yield Path(place)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=root, check=True)


def commit() -> str:
    """The commit that is measured."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, cwd=RESULTS.parent, check=True).stdout.strip()


if __name__ == "__main__":
    main()
