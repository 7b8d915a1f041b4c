"""Two hundred clients at once for ten minutes, some vanishing, some sending rubbish: what they met, and the memory.

    python benchmarks/serve_soak.py [--seconds 600]

`herd serve` runs on a tiny random model in a process of its own; its memory is read every ten seconds. Results go to
benchmarks/results/serve_soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from herd.environment import environment
from herd.formats.checkpoint import save
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.load import CLIENTS, INTENDED, Process, besiege, serving, settle

RESULTS = Path(__file__).parent / "results" / "serve_soak.json"
EVERY_SECONDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    seconds, measured = parser.parse_args().seconds, commit()
    with tempfile.TemporaryDirectory() as place:
        tokenizer = small_tokenizer()
        save(tiny_model(eos_token_id=list(tokenizer.stop_ids)), Path(place) / "tiny", tokenizer)
        with serving(Path(place) / "tiny", "engine.max_sequences=16", "limits.max_waiting=150") as server:
            counts, memory, health = asyncio.run(watch(server, seconds))
    machine = environment()
    entry = {
        "benchmark": "serve_soak",
        "date": date.today().isoformat(),
        "commit": measured,
        "command": f"python benchmarks/serve_soak.py --seconds {seconds:g}",
        "hardware": {"cpu": machine["processor"], "threads": 1, "torch": machine["packages"]["torch"]},
        "clients": CLIENTS,
        "statuses": {str(status): count for status, count in sorted(counts.items(), key=str)},
        "unintended": sorted(str(status) for status in set(counts) - INTENDED),
        "requests_per_second": round(sum(counts.values()) / seconds, 1),
        "memory_mb_every_ten_seconds": [round(size / 1e6, 1) for size in memory],
        "health_afterwards": health,
    }
    RESULTS.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(entry, indent=1))


def commit() -> str:
    """The commit that was measured."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, cwd=RESULTS.parent, check=True).stdout.strip()


async def watch(server: Process, seconds: float) -> tuple[dict, list[int], dict]:
    """The statuses that came back, the server's memory over time, and its health at the end."""
    memory: list[int] = []

    async def measure() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            memory.append(server.resident_bytes())
            await asyncio.sleep(EVERY_SECONDS)

    counts, _ = await asyncio.gather(besiege(server.url, seconds), measure())
    health = await settle(server.url)
    memory.append(server.resident_bytes())
    return counts, memory, health


if __name__ == "__main__":
    main()
