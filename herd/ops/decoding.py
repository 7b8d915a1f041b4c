"""Our own C++ kernels for decoding, used where the processor has AVX-512 with bfloat16 and there is a compiler.

Nobody ever waits for them: they are compiled in the background the first time (two seconds) and kept; until they are
there, and where they cannot be, PyTorch's own operations do the work. `HERD_NATIVE=0` leaves them out altogether.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from pathlib import Path

import torch
from torch import Tensor

from herd.ops.native import find_compiler, library

_NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
_LOADING_SECONDS = 0.5  # enough to open kernels that are compiled already
_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "linear_bf16": [_POINTER] * 3 + [_COUNT] * 3 + [_INT],
    "linear_int8": [_POINTER] * 4 + [_COUNT] * 3 + [_INT],
    "linear_int4": [_POINTER] * 4 + [_COUNT] * 3 + [_INT],
    "widen_int4": [_POINTER] * 3 + [_COUNT] * 2 + [_INT],
    "quantize_int4": [_POINTER] * 2 + [_INT] + [_POINTER] * 2 + [_COUNT] * 2 + [_INT],
    "attend_bf16": [_POINTER] * 6 + [_COUNT] * 5 + [_FLOAT, _INT],
    "attend_int8": [_POINTER] * 8 + [_COUNT] * 5 + [_FLOAT, _INT],
}

_lock = threading.Lock()
_building: threading.Thread | None = None
_library: ctypes.CDLL | None = None
_why_not = "nobody asked for them yet"


def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None while they are not there."""
    return _library


def start() -> None:
    """Load the kernels if they are compiled already, else begin to compile them in the background."""
    global _building, _why_not
    with _lock:
        if _library is not None or _building is not None:
            return
        _why_not = _obstacle()
        if not _why_not:
            _why_not = "they are being compiled"
            _building = threading.Thread(target=_open, name="kernels", daemon=True)
            _building.start()
            _building.join(_LOADING_SECONDS)


def is_out_of_reach() -> bool:
    """The kernels are not there and not on their way."""
    return _library is None and (_building is None or not _building.is_alive())


def wait(timeout_seconds: float = 60) -> bool:
    """Wait for a compilation that was begun; whether the kernels are there. For benchmarks, tests and quantizing."""
    start()
    if _building is not None:
        _building.join(timeout_seconds)
    return _library is not None


def status() -> str:
    """One line for people: that the kernels are there, or why they are not."""
    return "compiled kernels" if _library is not None else f"PyTorch's kernels ({_why_not})"


def _obstacle() -> str:
    """Why the kernels cannot be had on this machine; empty where they can."""
    if os.environ.get("HERD_NATIVE") == "0":
        return "HERD_NATIVE=0"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "they are written for Linux on x86-64"
    if not _processor_flags() >= _NEEDED:
        return "the processor has no AVX-512 with bfloat16"
    return "" if find_compiler() is not None else "no C++ compiler was found"


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _open() -> None:
    global _library, _why_not
    found = library("decoding")
    if found is None:
        _why_not = "the C++ compiler could not compile them"
        return
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    _library = found


def linear(name: str, x: Tensor, tensors: tuple[Tensor, ...], num_columns: int) -> Tensor | None:
    """x (..., K) bfloat16 on the CPU times weights (`num_columns`, K); None while the kernels are not there."""
    if _library is None:
        return None
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], num_columns))
    pointers = [tensor.data_ptr() for tensor in tensors]
    rows = x.numel() // x.shape[-1]
    call = getattr(_library, name)
    call(x.data_ptr(), *pointers, out.data_ptr(), rows, num_columns, x.shape[-1], torch.get_num_threads())
    return out
