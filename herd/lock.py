"""A folder's lock: one process at a time works in it; the lock ends with the process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
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
        CheckpointError: another process holds it, or `.lock` is a link.
    """
    with _opened(path / ".lock") as file:
        _take_lock(file, path)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield  # closing the file frees the lock, and so does the death of the process


def _opened(file: Path) -> IO[str]:
    """Open the lock file without following links: writing through one would overwrite its target."""
    try:
        number = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            raise CheckpointError(f"{file}: is a link or a folder, not a regular file; delete it") from None
        raise
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(number)
        raise CheckpointError(f"{file}: is a link, not a regular file; delete it")
    return os.fdopen(number, "r+", encoding="utf-8", errors="replace")


def _take_lock(file: IO[str], path: Path) -> None:
    deadline = time.monotonic() + _LOCK_GRACE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            file.seek(0)
            owner = file.read(20).strip()
            if (owner.isascii() and owner.isdigit() and _alive(int(owner))) or time.monotonic() > deadline:
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
    except OverflowError:  # not a process id
        return False
    return True
