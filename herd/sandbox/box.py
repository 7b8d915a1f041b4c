"""One box: its file system, its supervisor (process 1), and the program, which gives up every right before it starts.

The program cannot reach the supervisor, which has the same user: it is not dumpable, stands outside the program's
Landlock domain, and is process 1, which ignores its own namespace's signals.
"""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import select
import signal
import socket
import stat
import time
from typing import Any

from herd.sandbox import frames, kernel, levels, seccomp

_DEVICES = ("null", "zero", "full", "random", "urandom")
_FIRST_USER = 0x70000000  # users that no system gives to anybody; one a box, so that limits by user count one box
_TICK_SECONDS = 0.05
_MAX_ENTRIES = 10_000  # of the box's folder that are looked at when files are collected
_HIDDEN = ".tmp"


def open_box(channel: socket.socket, job: dict[str, Any]) -> None:
    """Build the box in this process, fork its supervisor, and wait for it."""
    layers = levels.LAYERS[job["level"]]
    user = _FIRST_USER + os.getpid() % 0x0FFFFFFF
    outer_root = False
    if "namespaces" in layers:
        os.setgroups([]) if os.geteuid() == 0 else None
        outer_root = levels.enter_namespaces()
        _build_root(job, user if outer_root else os.geteuid())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kernel.die_with_parent()
            _supervise(channel, job, layers, user if outer_root else None)
            status = 0
        except BaseException as error:
            frames.send(channel, {"fault": f"{type(error).__name__}: {error}"})
            status = 0  # it has been said
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("process 1 of the box was killed")


def _build_root(job: dict[str, Any], owner: int) -> None:
    """A new root of nothing but what is named, all of it read-only, and one folder in memory that can be written."""
    root, disk = job["scratch"], job["limits"]["disk_bytes"]
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "size=1m,nr_inodes=4000,mode=755")
    for path in job["visible"]:
        _show(path, root)
    for folder in ("proc", "dev", "box", "etc"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{root}/dev/{name}", kernel.MS_RDONLY | kernel.MS_NOSUID)
    for path in job["masked"]:
        if os.path.isdir(root + path):
            kernel.mount("tmpfs", root + path, "tmpfs", safe | kernel.MS_RDONLY, "size=4k,mode=755")
    with open(f"{root}/etc/passwd", "w", encoding="ascii") as file:
        file.write("user:x:1000:1000::/box:/bin/sh\n")
    kernel.mount("tmpfs", f"{root}/box", "tmpfs", safe, f"size={disk},nr_inodes=20000,mode=700")
    if os.geteuid() != owner:
        os.chown(f"{root}/box", owner, owner)
    os.symlink("/box/.tmp", f"{root}/tmp")
    os.symlink("/box/.tmp", f"{root}/dev/shm")


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


def _supervise(channel: socket.socket, job: dict[str, Any], layers: tuple[str, ...], user: int | None) -> None:
    home = "/box" if "namespaces" in layers else job["scratch"]
    if "namespaces" in layers:
        # Before the old root goes: the kernel lets an ordinary user mount /proc only where another one is in sight.
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("proc", f"{job['scratch']}/proc", "proc", flags)
        kernel.pivot(job["scratch"])
        if user is not None:
            os.setresgid(user, user, user)
            # Only the kernel's root may write /proc; the map is written first, then /proc and / are closed for good.
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
        kernel.die_with_parent()  # a change of user has taken it away
    else:
        kernel.adopt_orphans()
    kernel.undumpable()
    os.umask(0o077)
    os.chdir(home)
    os.mkdir(_HIDDEN)
    for name, data in job["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(base64.b64decode(data))
    began = time.monotonic()
    run = _Run(job["limits"], layers, home, job)
    for step in job["steps"]:
        run.step(step)
        if run.why != "ended" or run.status:
            break
    seconds = time.monotonic() - began
    files, left_out = _collect(job)
    streams = {name: bytes(run.out[name]).decode("utf-8", "replace") for name in run.out}
    told = {"status": run.status, "why": run.why, "seconds": seconds, "files": files, "left_out": left_out}
    frames.send(channel, {**streams, **told})


class _Run:
    """What the steps of a job (compile, run) have written so far, and why they ended."""

    def __init__(self, limits: dict[str, Any], layers: tuple[str, ...], home: str, job: dict[str, Any]):
        self.limits, self.layers, self.home, self.job = limits, layers, home, job
        self.out = {"stdout": bytearray(), "stderr": bytearray()}
        self.status, self.why = 0, "ended"

    def step(self, words: list[str]) -> None:
        """Start a program, watch it, and leave no process of it behind."""
        ends = {name: os.pipe() for name in self.out}
        child = os.fork()
        if child == 0:
            _become(words, self, {name: pair[1] for name, pair in ends.items()})
        for _, writes in ends.values():
            os.close(writes)
        reads = {pair[0]: name for name, pair in ends.items()}
        process = os.pidfd_open(child)
        try:
            self._watch(process, reads)
        finally:
            self.status = _end_all(child)
            self._drain(reads)
            for handle in (process, *(pair[0] for pair in ends.values())):
                os.close(handle)
        if self.why == "ended" and self.status < 0:
            self.why = "cpu" if -self.status == signal.SIGXCPU else f"signal {signal.Signals(-self.status).name}"

    def _watch(self, process: int, reads: dict[int, str]) -> None:
        deadline = time.monotonic() + self.limits["wall_seconds"]
        waits, checked = [process, *reads], 0.0
        while True:
            ready = select.select(waits, [], [], _TICK_SECONDS)[0]
            for handle in ready:
                if handle != process and not self._read(handle, reads[handle]):
                    waits.remove(handle)
            now = time.monotonic()
            if process in ready or self.why == "output":
                return
            if now > deadline:
                self.why = "time"
                return
            if now - checked >= _TICK_SECONDS:
                checked = now
                if self._over_memory_or_cpu():
                    return

    def _read(self, handle: int, name: str) -> bool:
        piece = os.read(handle, 1 << 16)
        kept, limit = self.out[name], self.limits["output_bytes"]
        kept += piece[: limit - len(kept) + 1]
        if len(kept) > limit:
            del kept[limit:]
            self.why = "output"
        return bool(piece)

    def _drain(self, reads: dict[int, str]) -> None:
        """What still lies in the pipes: every writer is dead, so this ends."""
        for handle, name in reads.items():
            os.set_blocking(handle, False)
            with contextlib.suppress(BlockingIOError):
                while self.why != "output" and self._read(handle, name):
                    pass

    def _over_memory_or_cpu(self) -> bool:
        """Memory and processor time of the whole box together; a limit by process would count each of them anew."""
        memory, ticks = 0, sum(os.times()[2:4]) * os.sysconf("SC_CLK_TCK")
        for pid in _descendants():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{pid}/stat", "rb") as file:
                    words = file.read().rpartition(b")")[2].split()
                ticks += int(words[11]) + int(words[12])
                memory += int(words[21]) * os.sysconf("SC_PAGE_SIZE")
        if memory > self.limits["memory_bytes"]:
            self.why = "memory"
        elif ticks / os.sysconf("SC_CLK_TCK") > self.limits["cpu_seconds"]:
            self.why = "cpu"
        return self.why != "ended"


def _become(words: list[str], run: _Run, streams: dict[str, int]) -> None:
    """Turn this process into the program: everything it holds is given up before the first line of it runs."""
    try:
        os.setsid()  # no controlling terminal
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        complaints = os.dup(streams["stderr"])
        os.dup2(streams["stdout"], 1)
        os.dup2(complaints, 2)
        os.closerange(3, 1 << 16)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        _limit(run.limits, run.job["reserves_memory"])
        kernel.no_new_privileges()
        if "landlock" in run.layers:
            inside = "namespaces" in run.layers
            devices = [f"/dev/{name}" for name in _DEVICES]
            kernel.landlock(["/"] if inside else run.job["visible"], [run.home, *devices])
        if "seccomp" in run.layers:
            kernel.install_filter(seccomp.program())
        environment = {**run.job["environment"], "HOME": run.home, "TMPDIR": f"{run.home}/{_HIDDEN}"}
        os.execve(words[0], words, environment)
    except BaseException as error:
        os.write(2, f"{words[0]}: could not be started: {error}\n".encode())
    finally:
        os._exit(127)


def _limit(limits: dict[str, Any], reserves_memory: bool) -> None:
    cpu = int(limits["cpu_seconds"]) + 1
    bounds = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_DATA: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_NPROC: limits["num_processes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 1,  # not 0: that does not stop a core that the system pipes into a program
    }
    if not reserves_memory:  # Node and Java reserve far more addresses than they use
        bounds[resource.RLIMIT_AS] = limits["memory_bytes"]
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (bound, bound))


def _descendants() -> list[int]:
    """Every process of the box but the supervisor."""
    own = os.getpid()
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = {own}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {own})


def _end_all(child: int) -> int:
    """Kill whatever is left in the box and reap it; returns the program's exit status, or minus its signal."""
    status = None
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        done, code = os.waitpid(child, os.WNOHANG) if status is None else (0, 0)
        if done:
            status = os.waitstatus_to_exitcode(code)
        if os.getpid() == 1:  # only there does -1 mean the box alone
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            for pid in _descendants():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        try:
            done, code = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if done == child:
            status = os.waitstatus_to_exitcode(code)
    return -signal.SIGKILL if status is None else status


# ---- files out -------------------------------------------------------------------------------------------------------


def _collect(job: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Regular files that are new or changed, and what was left out and why; no process lives that could swap them."""
    files: dict[str, str] = {}
    left_out: dict[str, str] = {}
    room = job["limits"]["returned_bytes"]
    num_entries = 0
    for folder, folders, names in os.walk(".", followlinks=False):
        folders[:] = [name for name in folders if not (folder == "." and name == _HIDDEN)]
        for name in names:
            num_entries += 1
            path = os.path.relpath(os.path.join(folder, name), ".")
            if num_entries > _MAX_ENTRIES:
                return files, {**left_out, "...": f"more than {_MAX_ENTRIES} files"}
            why, data = _read_file(path, room)
            if why:
                left_out[_text(path)] = why
            elif job["files"].get(path) != (encoded := base64.b64encode(data).decode()):
                files[_text(path)] = encoded
                room -= len(data)
    return files, left_out


def _read_file(path: str, room: int) -> tuple[str | None, bytes]:
    try:
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return f"not a plain file ({error.strerror})", b""
    with os.fdopen(found, "rb") as file:
        kind = os.fstat(found)
        if not stat.S_ISREG(kind.st_mode) or kind.st_nlink != 1:
            return "not a plain file", b""
        if kind.st_size > room:
            return "over the limit of returned bytes", b""
        return None, file.read(room)


def _text(path: str) -> str:
    return path.encode("utf-8", "replace").decode()
