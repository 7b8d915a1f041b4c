"""C++ kernels, compiled on this machine if it has a compiler and the processor has the instructions.

They are optional: callers get a library or None, and have a path in plain PyTorch. A library is compiled once (a few
seconds) and cached in `$XDG_CACHE_HOME/herd` (`~/.cache/herd`) with its hash; `HERD_NATIVE=0` disables all of them, and
`HERD_NATIVE=avx2` compiles for processors with only AVX2.

A loaded library has all rights of the user. So it is loaded only from a folder that no other user can write to, if the
user owns it and its hash is as recorded; a truncated one, which would kill the process (SIGBUS), is compiled again.
Without such a folder it is compiled for this process only.
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
_UNKEPT = "kernels are compiled for this process only (XDG_CACHE_HOME sets the folder to cache them in)"
_LANES = 16  # numbers per instruction; widths must be multiples of it
_switched_off = ContextVar("kernels switched off", default=False)


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `herd/kernels/<name>.cpp`; None if it cannot be compiled or does not run on this processor."""
    compiler = find_compiler()
    if os.environ.get("HERD_NATIVE") == "0" or compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        key = f"{name}-{_key(source, compiler)}"
        _share_threads()
        if (folder := _cache_folder()) is not None:
            return ctypes.CDLL(str(_kept(folder, key) or _keep(folder, key, compiler, source)))
        with tempfile.TemporaryDirectory(prefix="herd-") as aside:  # a loaded library stays when its file is deleted
            return ctypes.CDLL(str(_compile(compiler, source, Path(aside))))
    except (OSError, subprocess.SubprocessError):
        return None


def loaded(name: str) -> ctypes.CDLL:
    """The library, after `library` has returned one."""
    found = library(name)
    assert found is not None
    return found


def layer_kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    """The kernels for operations between matmuls if they support these tensors (bfloat16, contiguous); else None."""
    if torch.compiler.is_compiling() or _switched_off.get():  # torch.compile fuses the plain form
        return None
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
        if not plain or tensor.dtype != torch.bfloat16 or tensor.shape[-1] % _LANES or not tensor.is_contiguous():
            return None
    return library("native_layers")


def without_kernels(function: Callable) -> Callable:
    """The function with kernels disabled, in plain PyTorch."""

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        token = _switched_off.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _switched_off.reset(token)

    return plain


def find_compiler() -> str | None:
    """The C++ compiler: `$CXX`, else g++ or c++ (clang has its own OpenMP)."""
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
    """The library cached under a key, if the user owns it and it is intact."""
    try:
        digest = _own_bytes(folder / f"{key}.sha256").decode("ascii")
        file = folder / f"{key}-{digest[:16]}.so"
        return file if hashlib.sha256(_own_bytes(file)).hexdigest() == digest else None
    except (OSError, UnicodeDecodeError, ValueError):
        return None


def _keep(folder: Path, key: str, compiler: str, source: Path) -> Path:
    """Compile to a temporary file, flush and rename, the record last, so that several processes can do so at once."""
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
    """The content of a file that this user owns and nobody else can write.

    Raises:
        OSError: it is missing, a link, or another user's.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(f"{path} is not this user's, or others can write it")
        return file.read()


def _cache_folder() -> Path | None:
    """This user's folder of compiled libraries (0700); None if there cannot be one."""
    folder = user_folder("XDG_CACHE_HOME", ".cache", _UNKEPT)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status, user = folder.lstat(), os.geteuid()
        # another user could replace files in that user's folder
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and folder.parent.stat().st_uid in (0, user):
            folder.chmod(0o700)
            return folder
        say_once(f"{folder} is a link or another user's: {_UNKEPT}")
    except OSError as error:
        say_once(f"{folder} cannot be used ({error.strerror}): {_UNKEPT}")
    return None


def _key(source: Path, compiler: str) -> str:
    """A hash of what a compiled file depends on: its source, the compiler and this processor's instructions."""
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
    """Let the library use the OpenMP that PyTorch has loaded: two thread pools would compete for the cores."""
    maps = Path("/proc/self/maps")
    names = (
        {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line} if maps.exists() else set()
    )
    for name in sorted(names):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def counts(*numbers: int) -> list[ctypes.c_int64]:
    """Sizes as arguments of a library function."""
    return [ctypes.c_int64(number) for number in numbers]


def pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    """Tensors' addresses as arguments of a library function."""
    return [pointer(tensor) for tensor in tensors]


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """A tensor's address as an argument of a library function."""
    return ctypes.c_void_p(tensor.data_ptr())
