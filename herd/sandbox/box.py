"""One box: its file system and its supervisor (process 1), which runs programs and returns results."""

from __future__ import annotations

import os
import resource
import socket
import time
from typing import Any

from herd.sandbox import cells, environment, frames, kernel, levels
from herd.sandbox.files import Folder
from herd.sandbox.processes import DEVICES, HIDDEN, Program, Setting

_FIRST_USER = 0x70000000  # unused user ids, one per box, so that per-user limits apply to one box
_SAFE = kernel.MS_NOSUID | kernel.MS_NODEV


def open_box(channel: socket.socket, job: dict[str, Any], group: tuple[int, int] | None) -> None:
    """Set up the box in this process, fork its supervisor, and wait for it; `group`: file descriptors of its cgroup."""
    layers = levels.LAYERS[job["level"]]
    user = _FIRST_USER + os.getpid() % 0x0FFFFFFF
    outer_root = False
    if "namespaces" in layers:
        outer_root = levels.enter_namespaces()
        _build_root(job, user if outer_root else os.geteuid())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kernel.die_with_parent()
            _supervise(channel, job, layers, user if outer_root else None, group)
            status = 0
        except BaseException as error:
            frames.send(channel, {"fault": f"{type(error).__name__}: {error}"})
            status = 0  # already reported
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("process 1 of the box was killed")


def _build_root(job: dict[str, Any], owner: int) -> None:
    """A new root with only the named paths, read-only, and one writable folder in memory."""
    root, disk = job["scratch"], job["limits"]["disk_bytes"]
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "size=1m,nr_inodes=4000,mode=755")
    for path in job["visible"]:
        _show(path, root)
    for folder in ("proc", "dev", "box", "etc"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    for name in DEVICES:
        _bind(f"/dev/{name}", f"{root}/dev/{name}", kernel.MS_RDONLY | kernel.MS_NOSUID)
    for path in job["masked"]:
        if os.path.isdir(root + path):
            kernel.mount("tmpfs", root + path, "tmpfs", _SAFE | kernel.MS_RDONLY, "size=4k,mode=755")
    if job["python"]:
        environment.lay(root + environment.INSIDE, job["python"])
    for path, source in job["packages"].items():
        _bind(source, f"{root}{environment.INSIDE}/{environment.SITE}/{path}", _SAFE | kernel.MS_RDONLY)
    with open(f"{root}/etc/passwd", "w", encoding="ascii") as file:
        file.write("user:x:1000:1000::/box:/bin/sh\n")
    kernel.mount("tmpfs", f"{root}/box", "tmpfs", _SAFE, f"size={disk},nr_inodes=20000,mode=700")
    if os.geteuid() != owner:
        os.chown(f"{root}/box", owner, owner)
    os.symlink(f"/box/{HIDDEN}", f"{root}/tmp")
    os.symlink(f"/box/{HIDDEN}", f"{root}/dev/shm")


def _show(path: str, root: str) -> None:
    if os.path.lexists(root + path) or not os.path.lexists(path):
        return
    if os.path.islink(path):  # /bin -> usr/bin
        os.symlink(os.readlink(path), root + path)
    else:
        _bind(path, root + path, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)


def _bind(path: str, target: str, flags: int) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(target, flags, recursive=True)


# ---- the supervisor --------------------------------------------------------------------------------------------------


def _supervise(
    channel: socket.socket,
    job: dict[str, Any],
    layers: tuple[str, ...],
    user: int | None,
    group: tuple[int, int] | None,
) -> None:
    inside = "namespaces" in layers
    home = "/box" if inside else job["scratch"]
    if inside:
        _enter(job, user)
    else:
        kernel.adopt_orphans()
    kernel.undumpable()
    os.umask(0o077)
    os.chdir(home)
    os.mkdir(HIDDEN)
    folder = Folder(home)
    if refused := folder.put(job["files"]):  # a result without its input files would be meaningless
        said = "; ".join(f"{name!r} {why}" for name, why in refused.items())
        frames.send(channel, {"fault": f"{said}; the limit disk_bytes is {job['limits']['disk_bytes']}"})
        return
    setting = Setting(job, layers, home, ["/"] if inside else [*job["visible"], *job["packages"].values()], group)
    if job["session"]:
        frames.send(channel, {"open": True})
        cells.serve(channel, setting, folder)
        return
    began, out = time.monotonic(), {"stdout": bytearray(), "stderr": bytearray()}
    for step in job["steps"]:
        program = Program(step, setting, out)
        try:
            program.watch()
        finally:
            program.end()
        if program.why != "ended" or program.status:
            break
    seconds = time.monotonic() - began
    files, left_out = folder.collect(job["limits"]["returned_bytes"])
    streams = {name: bytes(data).decode("utf-8", "replace") for name, data in out.items()}
    result = {"status": program.status, "why": program.why, "seconds": seconds, "files": files, "left_out": left_out}
    frames.send(channel, {**streams, **result})


def _enter(job: dict[str, Any], user: int | None) -> None:
    """Enter the new root, detach the old one, and drop all privileges."""
    # Before the old root is detached: an ordinary user may mount /proc only if another one is visible.
    kernel.mount("proc", f"{job['scratch']}/proc", "proc", _SAFE | kernel.MS_NOEXEC)
    kernel.pivot(job["scratch"])
    if user is not None:
        os.setresgid(user, user, user)
        # Only real root may write /proc; the map is written first, then /proc and / become read-only.
        kernel.restrict_mount("/", kernel.MS_RDONLY, recursive=False)
        os.setresuid(user, user, user)
        resource.setrlimit(resource.RLIMIT_NPROC, (job["limits"]["num_processes"] + 1,) * 2)
        kernel.dumpable()
        kernel.unshare(kernel.NEWUSER)
        levels.map_user(user, user)
    else:
        kernel.restrict_mount("/", kernel.MS_RDONLY, recursive=False)
        kernel.restrict_mount("/proc", kernel.MS_RDONLY, recursive=False)
    kernel.drop_capabilities()
    kernel.die_with_parent()  # again: the change of user has reset it
