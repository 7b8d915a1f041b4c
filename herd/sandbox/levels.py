"""The levels of isolation, their layers, and which of them this machine supports.

A layer is available if a child process could set it up, whatever the kernel version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from herd.errors import SandboxError
from herd.sandbox import cgroup, kernel, seccomp

_TRIES = "import sys; sys.path.insert(0, sys.argv[1]); from herd.sandbox.levels import tell; tell()"

LEVELS = ("full", "namespaces", "landlock", "limits")
"""From the strongest to the weakest."""

LAYERS: dict[str, tuple[str, ...]] = {
    "full": ("namespaces", "landlock", "seccomp", "rlimits"),
    "namespaces": ("namespaces", "seccomp", "rlimits"),
    "landlock": ("landlock", "seccomp", "rlimits"),
    "limits": ("rlimits",),
}


def available() -> dict[str, str | None]:
    """Each layer with the reason why it is not available on this machine; None if it is.

    `cgroup` is used at every level if available, and required by none.
    """
    return dict(_available())


@cache
def _available() -> tuple[tuple[str, str | None], ...]:
    """Tested once, in a new process: a fork of this one could hang on a lock that another thread holds."""
    if not kernel.supported():
        why = "only on Linux, x86-64 or arm64"
        return (("namespaces", why), ("landlock", why), ("seccomp", why), ("rlimits", None), ("cgroup", why))
    command = [sys.executable, "-I", "-S", "-c", _TRIES, str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/", check=False)
    if done.returncode:
        raise SandboxError(f"testing the sandbox's layers failed: {done.stderr.strip()}")
    return (*json.loads(done.stdout).items(), ("rlimits", None), ("cgroup", cgroup.parent()[1]))


def tell() -> None:
    """Set up each layer in a child of this process and print the results."""
    tries: dict[str, Callable[[], None]] = {
        "namespaces": _namespaces,
        "landlock": lambda: _prepared(lambda: kernel.landlock(["/usr"], [])),
        "seccomp": lambda: _prepared(lambda: kernel.install_filter(seccomp.program())),
    }
    print(json.dumps({name: _tried(put_up) for name, put_up in tries.items()}))


def strongest() -> str:
    """The strongest level that is available on this machine."""
    there = available()
    return next(level for level in LEVELS if all(there[layer] is None for layer in LAYERS[level]))


def enter_namespaces() -> bool:
    """Enter new namespaces of all kinds; returns whether this was done as real root.

    Real root creates the outer namespaces first and the user namespace last, as another user, so that nothing in the
    box owns a namespace. An ordinary user must begin with the user namespace, which permits the others.
    """
    if os.geteuid() == 0 and _maps_every_user():
        try:
            kernel.unshare(kernel.NAMESPACES)
            os.setgroups([])
            return True
        except PermissionError:
            pass  # root of a container without CAP_SYS_ADMIN: treated as an ordinary user
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEWUSER | kernel.NAMESPACES)
    map_user(user, group)
    return False


def _maps_every_user() -> bool:
    """Whether root is the machine's root: that of a user namespace (a rootless container) maps only some users."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", str(2**32 - 1)]


def map_user(user: int, group: int) -> None:
    """Map only this user and group, to 1000 inside."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _namespaces() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                raise OSError(0, "namespaces, mounts or a new /proc are refused")
            return
        try:
            enter_namespaces()
            kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
            kernel.mount("tmpfs", scratch, "tmpfs", kernel.MS_NOSUID)
            kernel.restrict_mount(scratch, kernel.MS_RDONLY, recursive=True)
            if (first := os.fork()) == 0:  # process 1 of the new namespace, whose /proc this must be
                kernel.mount("proc", scratch, "proc", kernel.MS_NOSUID)
                os._exit(0)
            os._exit(os.waitpid(first, 0)[1] != 0)
        finally:
            os._exit(1)


def _prepared(put_up: Callable[[], None]) -> None:
    kernel.no_new_privileges()
    put_up()


def _tried(put_up: Callable[[], None]) -> str | None:
    """Set up a layer in a child; returns the error, or None."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            put_up()
            os._exit(0)
        except OSError as error:
            os.write(writes, (error.strerror or str(error)).encode())
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, "rb") as said:
        why = said.read().decode()
    return None if os.waitpid(child, 0)[1] == 0 else why or "refused"
