"""The sandbox's speed: one run inside beside one outside, and a thousand programs of HumanEval's size on every core.

    python benchmarks/sandbox.py ../shared/data

Inside and outside take turns, so that a busy machine slows both; processor time is told beside the clock, and how
busy the machine was. `memory` is what the house and its wardens hold after a tenth of the runs and after all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.curate_extraction import commit, machine  # noqa: E402
from benchmarks.sandbox_mutations import humaneval  # noqa: E402
from herd.sandbox import LAYERS, LEVELS, Pool, Sandbox, Session, available, run_many_tests  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of shared data")
    parser.add_argument("--runs", type=int, default=1000, help="programs in all")
    parser.add_argument("--turns", type=int, default=100, help="single runs of each kind")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sandbox.json")
    words = parser.parse_args()
    found = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "commit": commit()}
    found |= {"date": time.strftime("%Y-%m-%d"), "load_before": os.getloadavg()[0]}
    found["single"] = single(words.turns)
    found["many"] = many(words.data, words.runs)
    found["load_after"] = os.getloadavg()[0]
    words.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def single(turns: int) -> dict:
    """Median milliseconds of `pass` outside and at each level here, and of a cell of an open session."""
    levels = [level for level in LEVELS if not any(available()[layer] for layer in LAYERS[level])]
    boxes = {level: Sandbox(level) for level in levels}
    ways: dict[str, Callable[[], object]] = {"outside": lambda: subprocess.run([sys.executable, "-I", "-c", "pass"])}
    ways |= {level: lambda box=box: box.run("pass") for level, box in boxes.items()}
    session = Session(levels[0])
    ways["cell"] = lambda: session.run("pass")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - began))
    for one in (*boxes.values(), session):
        one.close()
    medians = {name: round(statistics.median(values), 1) for name, values in times.items()}
    return medians | {"turns": turns, "full_minus_outside": round(medians[levels[0]] - medians["outside"], 1)}


def many(data: Path, runs: int) -> dict:
    """Canonical solutions with their tests, again and again: in the pool, and as plain processes for comparison."""
    problems = humaneval(data)
    pairs = [(one.code, one.tests) for one in problems]
    pairs = (pairs * (runs // len(pairs) + 1))[:runs]
    tenth = len(pairs) // 10
    with Pool() as pool:
        passed, parts, memory = 0, [], []
        for part in (pairs[:tenth], pairs[tenth:]):
            began, used = time.perf_counter(), _processor_seconds(pool)
            passed += sum(verdict.passed for verdict in run_many_tests(part, 30, pool=pool))
            parts.append((time.perf_counter() - began, _processor_seconds(pool) - used))
            memory.append(_megabytes([os.getpid(), *pool.processes]))
        workers = len(pool.processes)
    plain_seconds, plain_processor = _plain(pairs[:tenth], workers)
    return {
        "runs": runs,
        "passed": passed,
        "workers": workers,
        "runs_per_second": round(len(pairs) / sum(seconds for seconds, _ in parts), 1),
        "processor_ms_a_run": round(1000 * sum(used for _, used in parts) / len(pairs), 1),
        "plain_runs_per_second": round(tenth / plain_seconds, 1),
        "plain_processor_ms_a_run": round(1000 * plain_processor / tenth, 1),
        "memory_MB": {"after_a_tenth": memory[0], "after_all": memory[1]},
    }


def _plain(pairs: list[tuple[str, str]], workers: int) -> tuple[float, float]:
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as threads:

        def one(number: int) -> None:
            path = Path(folder, f"{number}.py")
            path.write_text("\n".join(pairs[number]))
            subprocess.run([sys.executable, "-s", "-B", path], check=True, capture_output=True)

        list(threads.map(one, range(len(pairs))))
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def _processor_seconds(pool: Pool) -> float:
    """Of the wardens and everything that they have waited for."""
    ticks = 0
    for pid in pool.processes:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, words[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _megabytes(processes: list[int]) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes)
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


if __name__ == "__main__":
    main()
