"""Our Triton kernels for decoding on a GPU, compiled in the background.

Every kernel has a reference in plain PyTorch, which is used until the kernel is ready, or if it cannot be compiled.
`TRITON_INTERPRET=1`, set before Python starts, runs them on a CPU, slowly, for tests; `HERD_NATIVE=0` disables them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import queue
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LEAST_CAPABILITY = (8, 0)  # bfloat16 in tensor cores

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets kernels on the CPU."""


def wide_in_tests(dtype: torch.dtype) -> Any:
    """Triton's dtype for a kernel's products; float32 in the interpreter, which has no bfloat16."""
    import triton.language as tl

    return tl.float32 if IS_INTERPRETED else getattr(tl, str(dtype).removeprefix("torch."))


class Launch(NamedTuple):
    """A kernel with its grid and arguments."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Sequence[Any]
    constants: dict[str, Any]

    @property
    def key(self) -> Hashable:
        """What its compiled form depends on, without sizes that vary from step to step."""
        types = tuple(part.dtype for part in self.arguments if isinstance(part, Tensor))
        device = next(part.device for part in self.arguments if isinstance(part, Tensor))
        return self.kernel.__name__, types, tuple(self.constants.items()), device


class _Compilations:
    """The kernels that are compiled, being compiled, or impossible to compile."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ready: set[Hashable] = set()
        self.failed: dict[Hashable, str] = {}
        self._asked: dict[Hashable, threading.Event] = {}
        self._queue: queue.SimpleQueue[Launch] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, launch: Launch) -> threading.Event:
        """Request a kernel's compilation; the event is set at its end, successful or not."""
        with self.lock:
            if launch.key not in self._asked:
                self._asked[launch.key] = threading.Event()
                self._queue.put(launch)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="device kernels", daemon=True)
                    self._thread.start()
            return self._asked[launch.key]

    def are_pending(self) -> bool:
        """Whether a kernel is still being compiled."""
        with self.lock:
            return any(not event.is_set() for event in self._asked.values())

    def _work(self) -> None:
        while True:
            launch = self._queue.get()
            try:
                compile_launch(launch)
                self.ready.add(launch.key)
            except Exception as error:  # a compiler may raise anything; PyTorch's operations are used then
                self.failed[launch.key] = f"{launch.kernel.__name__}: {error}"
            self._asked[launch.key].set()


_compilations = _Compilations()
_patience = threading.local()


def serves(x: Tensor) -> bool:
    """Whether kernels support a tensor: a plain one, on a suitable device."""
    if type(x) is not Tensor:  # not a sharded or fake one
        return False
    return IS_INTERPRETED if x.device.type == "cpu" else not _obstacle(x.device)


def run(launches: Sequence[Launch]) -> bool:
    """Launch kernels in order if all are compiled; else request their compilation and return False."""
    if not IS_INTERPRETED:
        are_ready = [_is_ready(launch) for launch in launches]  # requests all of them
        if not all(are_ready):
            return False
    for launch in launches:
        try:
            launch.kernel[launch.grid](*launch.arguments, **launch.constants)
        except Exception as error:
            if IS_INTERPRETED:
                raise
            _compilations.ready.discard(launch.key)
            _compilations.failed[launch.key] = f"{launch.kernel.__name__}: {error}"
            return False
    return True


def _is_ready(launch: Launch) -> bool:
    key = launch.key
    if key in _compilations.ready:
        return True
    if key in _compilations.failed:
        return False
    event = _compilations.ask(launch)
    if getattr(_patience, "waits", False):
        event.wait()
    return key in _compilations.ready


def compile_launch(launch: Launch) -> None:
    """Compile a kernel for arguments like these, without launching it."""
    device = next(part.device for part in launch.arguments if isinstance(part, Tensor))
    with torch.cuda.device(device):
        launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.constants)


@contextmanager
def waiting(wish: bool = True) -> Iterator[None]:
    """A context in which this thread waits for kernels, so that the code path never changes midway."""
    before = getattr(_patience, "waits", False)
    _patience.waits = before or wish
    try:
        yield
    finally:
        _patience.waits = before


def are_pending() -> bool:
    """Whether requested kernels are still being compiled."""
    return _compilations.are_pending()


def status(device: torch.device) -> str:
    """Whether the kernels are available, or why not, in one line."""
    if obstacle := _obstacle(device):
        return f"PyTorch's kernels ({obstacle})"
    if _compilations.failed:
        return f"PyTorch's kernels in part ({'; '.join(_compilations.failed.values())[:300]})"
    return "Triton kernels, being compiled" if are_pending() else "Triton kernels"


@functools.cache
def _obstacle(device: torch.device) -> str:
    """Why the kernels cannot be used on a device; empty if they can."""
    if os.environ.get("HERD_NATIVE") == "0":
        return "HERD_NATIVE=0"
    if device.type != "cuda" or IS_INTERPRETED:
        return "" if device.type == "cpu" and IS_INTERPRETED else "they are for an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed"
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return "the GPU is none of NVIDIA's since Ampere"
    return ""
