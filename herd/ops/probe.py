"""What this machine's arithmetic and memory really reach, measured in a second, and what of its memory is free."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch


def matmul_rate(dtype: torch.dtype, size: int | None = None, seconds: float = 0.3, device: str = "cpu") -> float:
    """Floating-point operations per second of a square matmul of `size`, the best of its repetitions.

    The default is just large enough to reach the peak, so that on a busy machine some repetitions go undisturbed.
    """
    size = size or (768 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(a)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b.T, out=result), seconds, device)


def quiet_matmul_rate(dtype: torch.dtype, device: str = "cpu", seconds: float = 0.3) -> float:
    """The same for all cores of a machine that does nothing else, also where it does.

    One thread multiplies for so short a time that the best repetition is hardly disturbed; times the threads.
    """
    if device != "cpu":
        return matmul_rate(dtype, device=device, seconds=seconds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads * matmul_rate(dtype, size=384, seconds=seconds)
    finally:
        torch.set_num_threads(threads)


def memory_bandwidth(seconds: float = 0.2, device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes per second of copying one tensor onto another, reads and writes both counted."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), seconds, device)


@functools.cache
def best_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where its matmul is measured faster than float32's, as `quiet_matmul_rate` does, else float32.

    That a processor has instructions for it says little: those of AVX-512 BF16 halve the rate on some, double it on
    others.
    """
    if device != "cpu":
        return torch.bfloat16
    kinds = (torch.float32, torch.bfloat16)  # in turn, so that what else is running slows both
    rounds = [[quiet_matmul_rate(kind, seconds=0.05) for kind in kinds] for _ in range(4)]
    return max(zip(kinds, map(max, zip(*rounds))), key=lambda pair: pair[1])[0]


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


def available_memory(device: torch.device) -> int:
    """Bytes of memory that can be taken now: on the GPU, or on the host within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _meminfo_available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(min(free, _container_room()))


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container_room(root: Path = Path("/sys/fs/cgroup")) -> float:
    """What is left of a cgroup (v2) memory limit; infinite where there is none."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else max(int(limit) - used, 0)
