"""Files into the box's folder and out of it, never through a link that a program has laid.

Every step goes by an open folder and refuses links, because a session's program can lay one between two cells; it is
frozen or dead while this happens.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat

from herd.sandbox.processes import HIDDEN

_MAX_ENTRIES = 10_000  # of the box's folder that are looked at when files are collected
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
        num_entries = 0
        for folder, folders, names, handle in os.fwalk(".", dir_fd=self._home, follow_symlinks=False):
            folders[:] = [name for name in folders if not (folder == "." and name == HIDDEN)]
            kinds = {name: os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode for name in folders}
            links = [name for name, kind in kinds.items() if stat.S_ISLNK(kind)]
            for name in sorted([*links, *names]):
                num_entries += 1
                path = _text(os.path.normpath(os.path.join(folder, name)))
                if num_entries > _MAX_ENTRIES:
                    return files, {**left_out, "...": f"more than {_MAX_ENTRIES} files"}
                why, data = _read(name, handle, room)
                if why:
                    left_out[path] = why
                elif self._known.get(path) != (digest := hashlib.sha256(data).digest()):
                    self._known[path] = digest
                    files[path] = base64.b64encode(data).decode()
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
            with os.fdopen(opened, "wb") as file:
                file.write(data)
        finally:
            os.close(handle)


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
    return path.encode("utf-8", "replace").decode()
