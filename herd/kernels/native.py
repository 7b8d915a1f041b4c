"""C++ kernels, compiled on this machine where it has a compiler and the processor has the instructions; else None.

Nothing is ever required: whoever asks gets a library or None, and has a path in plain PyTorch. A library is compiled
once (a few seconds) and kept in `$XDG_CACHE_HOME/herd` (`~/.cache/herd`); `HERD_NATIVE=0` switches all of it off, and
`HERD_NATIVE=avx2` compiles for processors with no more than AVX2.
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
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-w")
_COMPILE_SECONDS = 120
_LANES = 16  # numbers that an instruction takes: widths are multiples of it
_switched_off = ContextVar("kernels switched off", default=False)


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `herd/kernels/<name>.cpp`; None where it cannot be compiled or does not run on this processor."""
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


def layer_kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    """The kernels for what stands between matmuls, where they take tensors like these (bfloat16, whole); else None."""
    if torch.compiler.is_compiling() or _switched_off.get():  # a compiler fuses the plain form with what is around it
        return None
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
        if not plain or tensor.dtype != torch.bfloat16 or tensor.shape[-1] % _LANES or not tensor.is_contiguous():
            return None
    return library("native_layers")


def without_kernels(function: Callable) -> Callable:
    """The function in plain PyTorch, whatever kernels there are."""

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        token = _switched_off.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _switched_off.reset(token)

    return plain


def find_compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first of g++ and c++ that is there (clang brings an OpenMP of its own)."""
    wished = os.environ.get("CXX")
    return next((found for name in (wished, "g++", "c++") if name and (found := shutil.which(name))), None)


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, "-march=haswell" if os.environ.get("HERD_NATIVE") == "avx2" else "-march=native")


def _compile(compiler: str, source: Path, file: Path) -> None:
    """Compile aside and rename, so that two processes that start at once do not disturb each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as aside:
        made = Path(aside) / file.name
        command = [compiler, *_flags(), str(source), "-o", str(made)]
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
        *_flags(),
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


def counts(*numbers: int) -> list[ctypes.c_int64]:
    """Sizes, for a call into a library."""
    return [ctypes.c_int64(number) for number in numbers]


def pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    """Where the data of tensors begin, for a call into a library."""
    return [pointer(tensor) for tensor in tensors]


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor's data begin, for a call into a library."""
    return ctypes.c_void_p(tensor.data_ptr())
