"""How many cores a step takes, where several engines run in threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_num_serial = 0  # blocks that run on one core just now
_usual = 1  # PyTorch's number of threads outside of them


@contextmanager
def cores(*, serial: bool) -> Iterator[None]:
    """Run a block on one core, or on as many as PyTorch is set to; the number of threads is as before afterwards.

    The number is a thread's own, but a new thread begins with what was set last in any other. So the usual number is
    looked up only while nobody runs on one core: else the 1 of a neighbour would be taken for it, and stay.
    """
    global _num_serial, _usual
    with _lock:
        if _num_serial == 0:
            _usual = torch.get_num_threads()
        usual = _usual
        _num_serial += serial
        _set(1 if serial else usual)
    try:
        yield
    finally:
        with _lock:
            _num_serial -= serial
            _set(usual)


def _set(num_threads: int) -> None:
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
