"""Where a result was made: versions, machine and command, for run folders and benchmarks."""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from herd.log import say


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process, without loading PyTorch."""
    packages = {}
    for name in ("herd-lm", "torch", "numpy", "daft", "pyarrow", "tiktoken", "tokenizers", "safetensors"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": now(),
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": packages,
    }


def now() -> str:
    """The time in the form of all run records: `2024-05-01T10:20:30Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def user_folder(variable: str, usual: str, otherwise: str) -> Path | None:
    """The folder `herd` under an XDG variable, or under `usual` in the user's home.

    None for a relative path (which XDG forbids) and for a user without a home; `otherwise`, what happens then, is
    printed once.
    """
    given = os.environ.get(variable)
    base = given or os.path.join(os.path.expanduser("~"), usual)  # stays `~` without a home
    if os.path.isabs(base):
        return Path(base) / "herd"
    say_once(f"{variable}={given} is not an absolute path: {otherwise}" if given else f"no home folder: {otherwise}")
    return None


@functools.cache
def say_once(text: str) -> None:
    """Print a sentence, once in a process."""
    say(text)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
