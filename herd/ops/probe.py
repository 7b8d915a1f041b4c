"""What this machine's arithmetic and memory really reach, measured in a second."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch


def matmul_rate(dtype: torch.dtype, size: int | None = None, seconds: float = 0.3, device: str = "cpu") -> float:
    """Floating-point operations per second of a square matmul of `size`, the best of its repetitions.

    The default is just large enough to reach the peak, so that on a busy machine some repetitions go undisturbed.
    """
    size = size or (768 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(a)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b.T, out=result), seconds, device)


def memory_bandwidth(seconds: float = 0.2, device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes per second of copying one tensor onto another, reads and writes both counted."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), seconds, device)


@functools.cache
def best_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where its matmul is measured faster than float32's, else float32."""
    if device != "cpu":
        return torch.bfloat16
    rates = {dtype: matmul_rate(dtype, size=512, seconds=0.15) for dtype in (torch.float32, torch.bfloat16)}
    return max(rates, key=rates.get)


def best_seconds(work: Callable[[], object], seconds: float, device: str) -> float:
    """Seconds that `work` takes on a device, the least of what it took within `seconds`."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    work()
    wait()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
    return best
