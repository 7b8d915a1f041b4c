"""The lock of a folder: one process at a time works in it, and the lock dies with it, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from herd.errors import CheckpointError

_LOCK_GRACE_SECONDS = 5.0  # how long a killed process may take to let go of its lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        CheckpointError: a living process has it.
    """
    with open(path / ".lock", "a+", encoding="utf-8") as file:
        _take_lock(file, path)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield  # closing the file frees the lock, and so does the death of the process


def _take_lock(file: IO[str], path: Path) -> None:
    deadline = time.monotonic() + _LOCK_GRACE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            if (owner and _alive(int(owner))) or time.monotonic() > deadline:
                raise CheckpointError(
                    f"{path}: in use by process {owner or 'unknown'}; wait for it, stop it, or choose another out="
                ) from None
            time.sleep(0.2)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
