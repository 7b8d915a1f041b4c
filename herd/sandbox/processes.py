"""A program in the box and its descendants: started without privileges, monitored, frozen, ended.

The program cannot attack the supervisor, which has the same user id: that is not dumpable, is outside the program's
Landlock domain, and is process 1, which ignores signals from its own namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import time
from dataclasses import dataclass
from typing import Any

from herd.sandbox import cgroup, kernel, seccomp

DEVICES = ("null", "zero", "full", "random", "urandom")
HIDDEN = ".tmp"
_TICK_SECONDS = 0.05
_INTERRUPT_SECONDS = 1.0  # for an interrupted cell to end, so that its session keeps its state
_FREEZE_SECONDS = 2.0
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Setting:
    """The environment of all programs in a box."""

    job: dict[str, Any]
    layers: tuple[str, ...]
    home: str
    readable: list[str]  # paths that Landlock permits
    group: tuple[int, int] | None = None  # descriptors of its cgroup's cgroup.procs and memory.events


class Program:
    """One program and its descendants. `out` collects its output, `why` is the limit it has reached (or `ended`)."""

    def __init__(self, words: list[str], setting: Setting, out: dict[str, bytearray], *, session: bool = False):
        self.out, self.status, self.why = out, 0, "ended"
        self._limits, self._used_before, self._group = setting.job["limits"], 0.0, setting.group
        ends = {name: os.pipe() for name in ("stdout", "stderr")}
        hands = (os.pipe(), os.pipe()) if session else None  # for cells, and one byte in answer to each
        self.child = os.fork()
        if self.child == 0:
            inner = (hands[0][0], hands[1][1]) if hands else ()
            become(words, setting, {name: pair[1] for name, pair in ends.items()}, inner)
        for _, writes in ends.values():
            os.close(writes)
        self._reads = {pair[0]: name for name, pair in ends.items()}
        self._process = os.pidfd_open(self.child)
        self._unsent, self._hand, self._done = bytearray(), -1, -1
        if hands:
            os.close(hands[0][0])
            os.close(hands[1][1])
            self._hand, self._done = hands[0][1], hands[1][0]
        self._waits = [self._process, *self._reads, *([self._done] if hands else [])]
        self._open = [self._process, *self._reads, *((self._hand, self._done) if hands else ())]
        for handle in self._open[1:]:
            os.set_blocking(handle, False)

    def begin_cell(self, code: str, limits: dict[str, Any], out: dict[str, bytearray]) -> None:
        """Resume the program with a new cell and new limits."""
        self.out, self.status, self.why, self._limits = out, 0, "ended", limits
        with contextlib.suppress(BlockingIOError):
            os.read(self._done, 1 << 16)  # discard unexpected bytes, which are not the answer to this cell
        data = code.encode("utf-8", "surrogatepass")
        self._unsent = bytearray(len(data).to_bytes(8, "little") + data)
        self._used_before = used()[1]
        _signal_all(signal.SIGCONT)

    def watch(self) -> bool:
        """Wait until the program ends, its cell is done, or a limit is reached; returns whether a cell is done."""
        deadline, checked = time.monotonic() + self._limits["wall_seconds"], 0.0
        while True:
            over, done = self._wait(_TICK_SECONDS)
            now = time.monotonic()
            if over or done or self.why == "output":
                return done and not over
            if now > deadline:
                self.why = "time"
                return False
            if now - checked >= _TICK_SECONDS:
                checked = now
                if self._over_memory_or_cpu():
                    return False

    def interrupt(self) -> bool:
        """Interrupt a cell, as Ctrl-C would; returns whether it stopped, so that the session's state is kept."""
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        os.kill(self.child, signal.SIGINT)
        while self.why != "memory" and time.monotonic() < deadline:
            over, done = self._wait(_TICK_SECONDS)
            if over or done:
                return done and not over
        return False

    def freeze(self) -> bool:
        """Stop all processes of the box; returns whether all have stopped."""
        deadline = time.monotonic() + _FREEZE_SECONDS
        while time.monotonic() < deadline:
            _signal_all(signal.SIGSTOP)
            if not any(state in b"RS" for pid in descendants() for state in _states(pid)):
                self._drain()
                return True
            time.sleep(0.001)
        return False

    def end(self) -> None:
        """Kill all its processes, and read the rest of its output."""
        self.status = end_all(self.child)
        self._drain()
        for handle in self._open:
            os.close(handle)
        if self.why == "ended" and self._group is not None and cgroup.killed_for_memory(self._group[1]):
            self.why = "memory"
        if self.why == "ended" and self.status < 0:
            self.why = "cpu" if -self.status == signal.SIGXCPU else f"signal {_signal_name(-self.status)}"

    def _wait(self, seconds: float) -> tuple[bool, bool]:
        """Transfer input and output; returns whether the program has ended, and whether a cell is done."""
        sends = [self._hand] if self._unsent else []
        ready, writable, _ = select.select(self._waits, sends, [], seconds)
        if writable:
            self._send()
        done = False
        for handle in ready:
            if handle == self._done:
                byte = os.read(handle, 1)
                done, self.status = bool(byte), byte[0] if byte else 0
                if not byte:
                    self._waits.remove(handle)
            elif handle != self._process and not self._read(handle):
                self._waits.remove(handle)
        return self._process in ready, done

    def _send(self) -> None:
        try:
            sent = os.write(self._hand, self._unsent)
        except BrokenPipeError:
            sent = len(self._unsent)  # it no longer reads; the time limit will end it
        del self._unsent[:sent]

    def _read(self, handle: int) -> bool:
        try:
            piece = os.read(handle, 1 << 16)
        except BlockingIOError:
            return True
        kept, limit = self.out[self._reads[handle]], self._limits["output_bytes"]
        kept += piece[: limit - len(kept) + 1]
        if len(kept) > limit:
            del kept[limit:]
            self.why = "output" if self.why == "ended" else self.why
        return bool(piece)

    def _drain(self) -> None:
        """Read what is left in the pipes; this ends, since every writer is dead or frozen."""
        for handle in self._reads:
            while select.select([handle], [], [], 0)[0] and self._read(handle):
                pass

    def _over_memory_or_cpu(self) -> bool:
        memory, seconds = used()
        if memory > self._limits["memory_bytes"]:
            self.why = "memory"
        elif seconds - self._used_before > self._limits["cpu_seconds"]:
            self.why = "cpu"
        return self.why != "ended"


def become(words: list[str], setting: Setting, streams: dict[str, int], hands: tuple[int, ...]) -> None:
    """Replace this process by the program, after dropping all privileges and open files.

    `hands` become descriptors 3 and up.
    """
    try:
        if setting.group is not None:
            os.write(setting.group[0], b"0")
        os.setsid()  # no controlling terminal
        kernel.die_with_parent()
        # First to high numbers, because each may have the number that another one needs.
        held = [os.open(os.devnull, os.O_RDONLY), *streams.values(), *hands]
        far = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in held]
        for number, handle in enumerate(far):
            os.dup2(handle, number)
        os.closerange(len(far), 1 << 16)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        _limit(setting.job["limits"], setting.job["reserves_memory"], session=bool(hands))
        kernel.no_new_privileges()
        kernel.drop_capabilities()  # of root, at levels without a separate user for the box
        if "landlock" in setting.layers:
            kernel.landlock(setting.readable, [setting.home, *(f"/dev/{name}" for name in DEVICES)])
        if "seccomp" in setting.layers:
            kernel.install_filter(seccomp.program())
        temporary = f"{setting.home}/{HIDDEN}"
        own = {"HOME": setting.home, "TMPDIR": temporary, "XDG_CACHE_HOME": temporary, "MPLCONFIGDIR": temporary}
        environment = {**setting.job["environment"], **own}
        os.execve(words[0], words, environment)
    except BaseException as error:
        os.write(2, f"{words[0]}: could not be started: {error}\n".encode())
    finally:
        os._exit(127)


def _limit(limits: dict[str, Any], reserves_memory: bool, *, session: bool) -> None:
    bounds = {
        resource.RLIMIT_DATA: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_NPROC: limits["num_processes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 1,  # not 0, which does not prevent core dumps piped into a program
    }
    if not session:  # in a session CPU time is limited per cell
        bounds[resource.RLIMIT_CPU] = int(limits["cpu_seconds"]) + 1
    if not reserves_memory:  # Node and Java reserve far more address space than they use
        bounds[resource.RLIMIT_AS] = limits["memory_bytes"]
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (bound, bound))


# ---- descendants of this process -------------------------------------------------------------------------------------


def descendants() -> list[int]:
    """The process ids of all descendants of this process."""
    own = os.getpid()
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (words := _stat(f"/proc/{name}/stat")):
            parents[int(name)] = int(words[1])
    found = {own}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {own})


def used() -> tuple[int, float]:
    """Memory in bytes and CPU time in seconds of all descendants together.

    Per-process limits would apply to each separately. Reaped processes count with their parent.
    """
    memory, ticks = 0, 0
    for pid in descendants():
        if words := _stat(f"/proc/{pid}/stat"):
            ticks += sum(map(int, words[11:15]))
            memory += int(words[21]) * _PAGE
    return memory, ticks / _TICKS + sum(os.times()[2:4])


def end_all(child: int, status: int | None = None) -> int:
    """Kill and reap all descendants; returns the child's exit status, or minus its signal.

    `status` is the child's, if it has already been reaped.
    """
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        done, code = os.waitpid(child, os.WNOHANG) if status is None else (0, 0)
        if done:
            status = os.waitstatus_to_exitcode(code)
        _signal_all(signal.SIGKILL)
        try:
            done, code = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if done == child:
            status = os.waitstatus_to_exitcode(code)
    return -signal.SIGKILL if status is None else status


def _signal_all(number: int) -> None:
    if os.getpid() == 1:  # only then does -1 mean just the box
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)
        return
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)  # a real-time signal; most have no name


def _states(pid: int) -> list[bytes]:
    """The state of every thread; R and S can still run."""
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [words[0] for name in names if (words := _stat(f"/proc/{pid}/task/{name}/stat"))]


def _stat(path: str) -> list[bytes] | None:
    """The fields of a stat file after the name, from the state on; None if the process has ended."""
    try:
        with open(path, "rb") as file:
            return file.read().rpartition(b")")[2].split() or None
    except OSError:
        return None
