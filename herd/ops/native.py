"""C++ kernels, compiled on this machine where it has a compiler and the processor has the instructions; else None.

Nothing is ever required: whoever asks gets a library or None, and has a path in plain PyTorch. A library is compiled
once (a few seconds) and kept in `$XDG_CACHE_HOME/herd` (`~/.cache/herd`); `HERD_NATIVE=0` switches all of it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-w")
_COMPILE_SECONDS = 120


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `herd/ops/<name>.cpp`; None where it cannot be compiled or does not run on this processor."""
    compiler = find_compiler()
    if os.environ.get("HERD_NATIVE") == "0" or compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        file = _cache_folder() / f"{name}-{_key(source, compiler)}.so"
        if not file.exists():
            _compile(compiler, source, file)
        _share_threads()
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError):
        return None


def find_compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first of g++ and c++ that is there (clang brings an OpenMP of its own)."""
    wished = os.environ.get("CXX")
    return next((found for name in (wished, "g++", "c++") if name and (found := shutil.which(name))), None)


def _compile(compiler: str, source: Path, file: Path) -> None:
    """Compile aside and rename, so that two processes that start at once do not disturb each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as aside:
        made = Path(aside) / file.name
        command = [compiler, *_FLAGS, str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        os.replace(made, file)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herd"


def _key(source: Path, compiler: str) -> str:
    """What a compiled file depends on: its source, the compiler and this processor's instructions."""
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    )
    headers = [header.read_text() for header in sorted(source.parent.glob("*.h"))]
    parts = (
        source.read_text(),
        *headers,
        compiler,
        str(os.stat(compiler).st_mtime_ns),
        flags,
        platform.machine(),
        *_FLAGS,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _share_threads() -> None:
    """Let the library find the OpenMP that PyTorch has loaded: two sets of threads would fight over the cores."""
    maps = Path("/proc/self/maps")
    names = (
        {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line} if maps.exists() else set()
    )
    for name in sorted(names):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor's data begin, for a call into a library."""
    return ctypes.c_void_p(tensor.data_ptr())
