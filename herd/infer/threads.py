"""How many cores a step uses, when several engines run in threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_num_serial = 0  # `with` blocks now running on one core
_usual = 1  # PyTorch's number of threads outside of them


@contextmanager
def cores(*, serial: bool) -> Iterator[None]:
    """Run a `with` block on one core, or on as many as PyTorch is set to; restores the number of threads afterwards.

    PyTorch keeps the number for each thread, but a new thread starts with the last value set in any. So the usual
    number is read only while no block runs on one core: else that 1 could be taken for it.
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
