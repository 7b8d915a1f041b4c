"""Files into the box's folder and out of it, never through a link that a program has laid.

Every step goes by an open folder and refuses links, because a session's program can lay one between two cells; it is
frozen or dead while this happens.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import Generator

from herd.sandbox.processes import HIDDEN

_MAX_ENTRIES = 10_000  # of the box's folder that are looked at when files are collected
_MAX_NAMED = 1_000  # of what is left out; the rest is counted
MAX_DEPTH = 32  # folders in one another: paths without end would fill the memory of the house
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Folder:
    """The box's folder, and what of it the house knows already: what it gave, and what it got."""

    def __init__(self, home: str):
        self._home = os.open(home, _FOLDER)
        self._known: dict[str, bytes] = {}

    def put(self, files: dict[str, str]) -> dict[str, str]:
        """Write files (in base64); those that the program's own doings kept out, and why."""
        left_out = {}
        for name, encoded in files.items():
            data = base64.b64decode(encoded)
            try:
                self._write(name, data)
            except OSError as error:
                left_out[name] = f"could not be written ({error.strerror})"
            else:
                self._known[name] = hashlib.sha256(data).digest()
        return left_out

    def collect(self, room: int) -> tuple[dict[str, str], dict[str, str]]:
        """Plain files that are new or changed, up to `room` bytes together, and what was left out and why."""
        files: dict[str, str] = {}
        left_out: dict[str, str] = {}
        num_unnamed = 0
        with contextlib.suppress(OSError):
            os.fchmod(self._home, 0o700)  # the program may have closed it
        entries = _entries(os.open(".", _FOLDER, dir_fd=self._home), "", 1)
        for num_entries, (name, path, folder, fault) in enumerate(entries, 1):
            if num_entries > _MAX_ENTRIES:
                left_out["..."] = f"more than {_MAX_ENTRIES} files"
                entries.close()
                break
            if fault == "":
                continue
            shown = _text(path)
            why, data = (fault, b"") if fault else _read(name, folder, room)
            if why and len(left_out) >= _MAX_NAMED:
                num_unnamed += 1
                left_out["..."] = f"{num_unnamed} more"
            elif why:
                left_out[shown] = why
            elif self._known.get(shown) != (digest := hashlib.sha256(data).digest()):
                self._known[shown] = digest
                files[shown] = base64.b64encode(data).decode()
                room -= len(data)
        return files, left_out

    def _write(self, name: str, data: bytes) -> None:
        *folders, last = name.split("/")
        handle = os.dup(self._home)
        try:
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=handle)
                inner = os.open(folder, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = inner
            with contextlib.suppress(FileNotFoundError):
                os.unlink(last, dir_fd=handle)  # what lies there may be a link, or one name of two
            opened = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=handle)
            try:
                with os.fdopen(opened, "wb") as file:
                    file.write(data)
            except OSError:  # full: half a file is worse than none
                os.unlink(last, dir_fd=handle)
                raise
        finally:
            os.close(handle)


def _entries(folder: int, above: str, depth: int) -> Generator[tuple[str, str, int, str | None], None, None]:
    """Name, path, open folder and fault of all that lies in a folder, which is closed in the end: files, then folders.

    The fault is None for what is not a folder, empty for a folder that is gone through, else why it is not.
    """
    try:
        with os.scandir(folder) as found:
            some = itertools.islice(found, _MAX_ENTRIES + 1)
            entries = sorted((one.is_dir(follow_symlinks=False), one.name) for one in some)
        for is_folder, name in entries:
            path = above + name
            if not is_folder or path == HIDDEN:
                yield name, path, folder, "" if is_folder else None
                continue
            if depth >= MAX_DEPTH:
                yield name, path, folder, f"more than {MAX_DEPTH} folders deep"
                continue
            try:
                inner = os.open(name, _FOLDER, dir_fd=folder)
            except OSError as error:
                yield name, path, folder, f"a folder that cannot be read ({error.strerror})"
                continue
            yield name, path, folder, ""
            yield from _entries(inner, f"{path}/", depth + 1)
    finally:
        os.close(folder)


def _read(name: str, folder: int, room: int) -> tuple[str | None, bytes]:
    try:
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        return f"not a plain file ({error.strerror})", b""
    with os.fdopen(found, "rb") as file:
        kind = os.fstat(found)
        if not stat.S_ISREG(kind.st_mode) or kind.st_nlink != 1:
            return "not a plain file", b""
        if kind.st_size > room:
            return "over the limit of returned bytes", b""
        return None, file.read(kind.st_size)


def _text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
