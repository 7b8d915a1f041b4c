"""Memory that requests took goes back to the system, where its allocator would keep it (glibc).

glibc gives each thread a pool of its own, and never returns what is free at the end of any but the first. So a server's
threads have one pool, and what is free in it goes back after requests that took much.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_ARENA_MAX = -8  # malloc.h


def use_one_pool() -> None:
    """Threads that come from now on take memory from one pool."""
    if library := _allocator():
        library.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """What is free goes back to the system."""
    if library := _allocator():
        library.malloc_trim(0)


@cache
def _allocator() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "malloc_trim") else None
