"""C++ kernels, compiled on this machine where it has a compiler and the processor has the instructions; else None.

Nothing is ever required: whoever asks gets a library or None, and has a path in plain PyTorch. A library is compiled
once (a few seconds) and kept in `$XDG_CACHE_HOME/herd` (`~/.cache/herd`), with its hash beside it; `HERD_NATIVE=0`
switches all of it off, and `HERD_NATIVE=avx2` compiles for processors with no more than AVX2.

A library that is loaded may do what its user may. So it is loaded only from a folder that nobody else can write to,
where it is the user's own and has the hash that was recorded; a cut one, which would kill the process (SIGBUS), is
compiled again. Where there is no such folder it is compiled for this process alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from herd.environment import say_once, user_folder

_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-w")
_COMPILE_SECONDS = 120
_UNKEPT = "kernels are compiled for this process alone (XDG_CACHE_HOME names a folder to keep them in)"
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
        key = f"{name}-{_key(source, compiler)}"
        _share_threads()
        if (folder := _cache_folder()) is not None:
            return ctypes.CDLL(str(_kept(folder, key) or _keep(folder, key, compiler, source)))
        with tempfile.TemporaryDirectory(prefix="herd-") as aside:  # what is loaded stays when its file goes
            return ctypes.CDLL(str(_compile(compiler, source, Path(aside))))
    except (OSError, subprocess.SubprocessError):
        return None


def loaded(name: str) -> ctypes.CDLL:
    """The same library, once `library` has found it."""
    found = library(name)
    assert found is not None
    return found


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


def _compile(compiler: str, source: Path, folder: Path) -> Path:
    made = folder / f"{source.stem}.so"
    command = [compiler, *_flags(), str(source), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
    return made


def _kept(folder: Path, key: str) -> Path | None:
    """The library that is kept under a key, where it is the user's own and whole."""
    try:
        digest = _own_bytes(folder / f"{key}.sha256").decode("ascii")
        file = folder / f"{key}-{digest[:16]}.so"
        return file if hashlib.sha256(_own_bytes(file)).hexdigest() == digest else None
    except (OSError, UnicodeDecodeError, ValueError):
        return None


def _keep(folder: Path, key: str, compiler: str, source: Path) -> Path:
    """Compile aside, flush and rename, the record last: processes that start at once do not disturb each other."""
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        made, record = _compile(compiler, source, Path(aside)), Path(aside) / "record"
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        record.write_text(digest, encoding="ascii")
        file = folder / f"{key}-{digest[:16]}.so"
        for path, place in ((made, file), (record, folder / f"{key}.sha256")):
            path.chmod(0o600)
            with open(path, "rb") as written:
                os.fsync(written.fileno())
            os.replace(path, place)
    return file


def _own_bytes(path: Path) -> bytes:
    """A file that this user wrote and nobody else can.

    Raises:
        OSError: it is missing, a link, or another user's.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(f"{path}: not this user's own")
        return file.read()


def _cache_folder() -> Path | None:
    """The folder of compiled libraries, this user's own (0700); None where there can be none."""
    folder = user_folder("XDG_CACHE_HOME", ".cache", _UNKEPT)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status, user = folder.lstat(), os.geteuid()
        # what lies in another user's folder is that user's
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and folder.parent.stat().st_uid in (0, user):
            folder.chmod(0o700)
            return folder
        say_once(f"{folder} is a link or another user's: {_UNKEPT}")
    except OSError as error:
        say_once(f"{folder} cannot be used ({error.strerror}): {_UNKEPT}")
    return None


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
