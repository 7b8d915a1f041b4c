"""The longest time for which one hostile request keeps the server's event loop, each request alone, and where.

    python benchmarks/serve_gaps.py [--only WORD] [--stacks]

A server over a tiny random model runs in a process of its own. A task of its event loop sleeps five milliseconds again
and again; what a sleep lasts beyond that is a gap. On a machine with other work a gap can be waiting for a processor:
the processor's time that the server took in it stands beside it, and that of the engine's longest step. With --stacks
the server's threads are written down in the middle of each gap, also where a library holds Python's lock. Results go to
benchmarks/results/serve_gaps.json.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import IO, Any

import httpx
import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from herd.environment import environment
from herd.serve.app import create_app
from tests.serve.attacks import attacks
from tests.serve.conftest import chat_engine

RESULTS = Path(__file__).parent / "results" / "serve_gaps.json"
_SLEEP_SECONDS = 0.005
_STACK_SECONDS = 0.06


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="attacks whose names hold this")
    parser.add_argument("--stacks", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(Path(asked.serve), asked.stacks)
        return
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, __file__, "--serve", place, *["--stacks"] * asked.stacks]
        with subprocess.Popen(words) as process:
            try:
                found = measure(Path(place), asked.only)
            finally:
                process.terminate()
    machine = environment()
    entry = {
        "benchmark": "serve_gaps",
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/serve_gaps.py",
        "hardware": {"cpu": machine["processor"], "threads": 1, "torch": machine["packages"]["torch"]},
        "attacks": len(found) - 1,
        "longest_gap_ms": max(one["gap_ms"] for one in found),
        "longest_processor_ms": max(one["processor_ms"] for one in found),
        "each": found,
    }
    if not asked.only and not asked.stacks:
        RESULTS.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """The commit that was measured."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, cwd=RESULTS.parent, check=True).stdout.strip()


def measure(place: Path, only: str) -> list[dict[str, Any]]:
    """Each attack, and the longest gap while it was worked on; the first is a second of nothing."""
    told, found = place / "port", []
    while not told.exists() or not told.read_text():
        time.sleep(0.05)
    with httpx.Client(base_url=f"http://127.0.0.1:{told.read_text()}", timeout=60) as client:
        for _ in range(2):  # what is made once
            client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, "structured_outputs": {"regex": "a"}})
        client.get("/gap")
        time.sleep(1)
        found.append({"attack": "none", "status": 0, "seconds": 1.0} | client.get("/gap").json())
        for name, path, body in attacks():
            if only in name:
                began = time.monotonic()
                answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
                one = {"attack": name, "status": answer.status_code, "seconds": round(time.monotonic() - began, 3)}
                time.sleep(0.05)
                found.append(one | client.get("/gap").json())
    for one in sorted(found, key=lambda one: one["processor_ms"]):
        times = "".join(f"{one[name]:9.1f}" for name in ("gap_ms", "processor_ms", "step_ms"))
        print(times, one["memory_mb"], "MB", one["status"], one["attack"])
        if one.get("stack"):
            print(one.pop("stack"))
    return found


def serve(place: Path, stacks: bool) -> None:
    """The server, which tells of its gaps under `/gap`."""
    engine, steps = chat_engine(max_position_embeddings=4096), [0.0]
    step = engine.step

    def timed() -> None:
        began = time.thread_time()
        step()
        steps.append(time.thread_time() - began)

    engine.step = timed  # type: ignore[method-assign]
    app = create_app(engine, name="tiny")
    worst: dict[str, Any] = {}
    file = open(place / "stacks", "w+") if stacks else None  # noqa: SIM115 (as long as the process)

    @app.get("/gap")
    async def told() -> dict[str, Any]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = {"gap_ms": 0.0, "processor_ms": 0.0} | worst | {"step_ms": round(1000 * max(steps), 1)}
        worst.clear()
        steps[:] = [0.0]
        return found | {"memory_mb": pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000}

    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        asyncio.get_running_loop().create_task(watch(worst, file))
        work = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        gc.collect()
        gc.freeze()
        (place / "port").write_text(str(server.servers[0].sockets[0].getsockname()[1]))
        await work

    asyncio.run(run())


async def watch(worst: dict[str, Any], file: IO[str] | None) -> None:
    """Remember the longest gap."""
    while True:
        if file is not None:
            file.seek(0)
            file.truncate()
            faulthandler.dump_traceback_later(_STACK_SECONDS, file=file)
        began, worked = time.monotonic(), time.process_time()
        await asyncio.sleep(_SLEEP_SECONDS)
        gap = {
            "gap_ms": round(1000 * (time.monotonic() - began - _SLEEP_SECONDS), 1),
            "processor_ms": round(1000 * (time.process_time() - worked), 1),
        }
        if file is not None:
            faulthandler.cancel_dump_traceback_later()
        if gap["gap_ms"] > worst.get("gap_ms", 0):
            worst.clear()
            worst.update(gap)
            if file is not None:
                file.seek(0)
                worst["stack"] = file.read()


if __name__ == "__main__":
    main()
