"""Our C++ kernels for the engine, used if the processor has AVX2 and there is a compiler.

They are compiled in the background the first time (two seconds) and cached; until then, or if that is impossible,
PyTorch's operations are used. `HERD_NATIVE=0` disables them. They are written for AVX-512 with bfloat16; `avx2.h`
emulates each vector by two halves on other processors.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from pathlib import Path

import torch
from torch import Tensor

from herd.kernels.native import find_compiler, library

_NEEDED = {"avx2", "fma"}
_WISHED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}
_LOADING_SECONDS = 0.5  # enough to load kernels that are already compiled
_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "run_layers": [_POINTER, _FLOAT, _INT],
    "linear": [_POINTER] * 3 + [_COUNT] * 2 + [_INT],
    "attend": [_POINTER] * 6 + [_COUNT, _POINTER] + [_COUNT] * 4 + [_INT],
    "widen_int4": [_POINTER] * 3 + [_COUNT] * 2 + [_INT],
    "quantize_int8": [_POINTER] * 3 + [_COUNT] * 2 + [_INT],
    "pair_nibbles": [_POINTER] * 2 + [_COUNT, _INT],
    "quantize_int4": [_POINTER] * 2 + [_INT] + [_POINTER] * 2 + [_COUNT] * 2 + [_INT],
}

_KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.uint8: 2}
_BLOCK_KINDS = {(torch.uint8, 32): 3, (torch.int8, 32): 4, (torch.int8, 16): 5}
_FEW_TOKENS = 24  # up to this many, memory bandwidth is the limit, not arithmetic

_lock = threading.Lock()
_building: threading.Thread | None = None
_library: ctypes.CDLL | None = None
_why_not = "nobody asked for them yet"


def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None if they are not ready."""
    return _library


def start() -> None:
    """Load the kernels if they are already compiled, else start compiling them in the background."""
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
    """Whether the kernels are neither ready nor being compiled."""
    return _library is None and (_building is None or not _building.is_alive())


def wait(timeout_seconds: float = 60) -> bool:
    """Wait for the compilation; returns whether the kernels are ready. For benchmarks, tests and quantizing."""
    start()
    if _building is not None:
        _building.join(timeout_seconds)
    return _library is not None


def status() -> str:
    """Whether the kernels are ready, or why not, in one line."""
    return f"compiled kernels ({_instructions()})" if _library is not None else f"PyTorch's kernels ({_why_not})"


def computes_bf16() -> bool:
    """Whether bfloat16 is fast on this CPU: PyTorch supports it, or our kernels can be compiled."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() or wait()


def _instructions() -> str:
    return "AVX-512" if _processor_flags() >= _WISHED and os.environ.get("HERD_NATIVE") != "avx2" else "AVX2"


def _obstacle() -> str:
    """Why the kernels cannot be used on this machine; empty if they can."""
    if os.environ.get("HERD_NATIVE") == "0":
        return "HERD_NATIVE=0"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "they are written for Linux on x86-64"
    if not _processor_flags() >= _NEEDED:
        return "the processor has no AVX2"
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
    declare(found)
    _library = found


def declare(found: ctypes.CDLL) -> None:
    """Declare the types of the kernels' arguments."""
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments


def serve_tokens(num_tokens: int) -> bool:
    """Whether the kernels are ready and faster than PyTorch's for this many tokens."""
    return _library is not None and (num_tokens <= _FEW_TOKENS or not _has_matrix_unit())


@functools.cache
def _has_matrix_unit() -> bool:
    """Whether the processor has AMX, which PyTorch uses and our kernels do not."""
    return "amx_bf16" in _processor_flags()


def describe(weight: Tensor, scale: Tensor | None = None, least: Tensor | None = None) -> list[int]:
    """A linear layer's weights in the kernels' form: kind, addresses, N and stored K.

    Scales in float16 belong to blocks (`herd/ops/blocks.py`).
    """
    num_rows, num_columns = weight.shape
    kind = _KINDS[weight.dtype]
    columns = num_columns * 2 if weight.dtype == torch.uint8 else num_columns
    if scale is not None and scale.dtype == torch.float16:
        kind = _BLOCK_KINDS[weight.dtype, columns // scale.shape[1]]
    places = [0 if part is None else part.data_ptr() for part in (scale, least)]
    return [kind, weight.data_ptr(), *places, num_rows, columns]


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None, least: Tensor | None = None) -> Tensor | None:
    """x (..., K) bfloat16 on the CPU times weights (N, K') of 16, 8 or 4 bits -> (..., N); K' is K with padding.

    None if the kernels are not ready, do not support it, or are slower than PyTorch's.
    """
    rows = x.numel() // x.shape[-1]
    description = describe(weight, scale, least)
    if description[-1] % 64 or not serve_tokens(rows):
        return None
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    assert _library is not None
    call = _library.linear
    layer = (ctypes.c_int64 * 6)(*description)
    call(layer, x.data_ptr(), out.data_ptr(), rows, x.shape[-1], torch.get_num_threads())
    return out
