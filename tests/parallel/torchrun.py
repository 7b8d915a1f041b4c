"""Commands of `herd` under `torchrun`, watched and killed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from herd.run import read_metrics

SECONDS = 300
ENVIRONMENT = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}


def launch(*words: str, processes: int = 1, restarts: int = 1) -> subprocess.Popen:
    """Start a command, by `torchrun` where it is to have several processes."""
    numbers = ["--nproc-per-node", str(processes), "--max-restarts", str(restarts), "--standalone"]
    module = ["-m", "torch.distributed.run", *numbers, "-m", "herd"] if processes > 1 else ["-m", "herd"]
    command = [sys.executable, *module, *words]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_steps(process: subprocess.Popen, out: Path, steps: int) -> None:
    while len(read_metrics(out)) < steps and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()


def workers(process: subprocess.Popen) -> list[int]:
    """The processes that a launcher has started."""
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def another(process: subprocess.Popen, out: Path) -> int:
    """The one of two workers that does not write."""
    [found] = [number for number in workers(process) if str(number) != (out / ".lock").read_text()]
    return found


def kill_one(process: subprocess.Popen, out: Path) -> None:
    """Kill a worker, not the one that writes."""
    os.kill(another(process, out), signal.SIGKILL)


def kill_all(process: subprocess.Popen) -> None:
    """Kill the launcher and its workers: nobody gets to say goodbye."""
    for number in (process.pid, *workers(process)):
        os.kill(number, signal.SIGKILL)
    process.communicate(timeout=SECONDS)


def end(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, text
    return text
