"""Short measurements of this machine's matmul rate and memory bandwidth, and its free memory."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch


def matmul_rate(dtype: torch.dtype, size: int | None = None, seconds: float = 0.3, device: str = "cpu") -> float:
    """Floating-point operations per second of a square matmul of `size`, the best of several repetitions.

    The default is just large enough to reach the peak, so that even on a busy machine some repetitions are undisturbed.
    """
    size = size or (768 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(a)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b.T, out=result), seconds, device)


def quiet_matmul_rate(dtype: torch.dtype, device: str = "cpu", seconds: float = 0.3) -> float:
    """The rate that all cores would reach on an idle machine, measured also on a busy one.

    The best of very short repetitions in one thread, which is hardly disturbed, times the number of threads.
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
    """Bytes per second of copying a tensor, counting both reads and writes."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), seconds, device)


@functools.cache
def best_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 if its matmul is measured to be faster than float32's by `quiet_matmul_rate`, else float32.

    The processor's flags say little: AVX-512 BF16 halves the rate on some processors and doubles it on others.
    """
    if device != "cpu":
        return torch.bfloat16
    kinds = (torch.float32, torch.bfloat16)  # alternating, so that other load affects both
    rounds = [[quiet_matmul_rate(kind, seconds=0.05) for kind in kinds] for _ in range(4)]
    return max(zip(kinds, map(max, zip(*rounds))), key=lambda pair: pair[1])[0]


def best_seconds(work: Callable[[], object], seconds: float, device: str) -> float:
    """The shortest time of `work` on a device, of as many repetitions as take `seconds`."""
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
    """Bytes of free memory: on the GPU, or on the host within the container's limit."""
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
    """The rest of a cgroup (v2) memory limit; infinite if there is none."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else max(int(limit) - used, 0)
