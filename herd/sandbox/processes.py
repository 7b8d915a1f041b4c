"""A program of the box and everything it starts: begun without rights, watched against its limits, frozen, ended.

The program cannot reach the supervisor, which has the same user: it is not dumpable, stands outside the program's
Landlock domain, and is process 1, which ignores its own namespace's signals.
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
_INTERRUPT_SECONDS = 1.0  # for a cell to end by itself once it is over a limit, so that its session keeps its state
_FREEZE_SECONDS = 2.0
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Setting:
    """What every program of a box starts with."""

    job: dict[str, Any]
    layers: tuple[str, ...]
    home: str
    readable: list[str]  # what Landlock leaves to it
    group: tuple[int, int] | None = None  # its cgroup's open cgroup.procs and memory.events


class Program:
    """One program and its descendants. `out` gathers what it writes, `why` says which limit it met (or `ended`)."""

    def __init__(self, words: list[str], setting: Setting, out: dict[str, bytearray], *, session: bool = False):
        self.out, self.status, self.why = out, 0, "ended"
        self._limits, self._used_before, self._group = setting.job["limits"], 0.0, setting.group
        ends = {name: os.pipe() for name in ("stdout", "stderr")}
        hands = (os.pipe(), os.pipe()) if session else None  # cells go in, a byte comes out for each
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
        """Let go on, with a new piece of code and new limits."""
        self.out, self.status, self.why, self._limits = out, 0, "ended", limits
        with contextlib.suppress(BlockingIOError):
            os.read(self._done, 1 << 16)  # a byte that nobody asked for is no answer to this cell
        data = code.encode("utf-8", "surrogatepass")
        self._unsent = bytearray(len(data).to_bytes(8, "little") + data)
        self._used_before = used()[1]
        _signal_all(signal.SIGCONT)

    def watch(self) -> bool:
        """Until the program ends, its cell is done, or a limit is met; whether a cell was done."""
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
        """Ask a cell to stop as Ctrl-C would; whether it did, so that the session's state is kept."""
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        os.kill(self.child, signal.SIGINT)
        while self.why != "memory" and time.monotonic() < deadline:
            over, done = self._wait(_TICK_SECONDS)
            if over or done:
                return done and not over
        return False

    def freeze(self) -> bool:
        """Stop every process of the box where it stands; whether all of them stand."""
        deadline = time.monotonic() + _FREEZE_SECONDS
        while time.monotonic() < deadline:
            _signal_all(signal.SIGSTOP)
            if not any(state in b"RS" for pid in descendants() for state in _states(pid)):
                self._drain()
                return True
            time.sleep(0.001)
        return False

    def end(self) -> None:
        """Leave no process of it behind, and take in what still lies in its pipes."""
        self.status = end_all(self.child)
        self._drain()
        for handle in self._open:
            os.close(handle)
        if self.why == "ended" and self._group is not None and cgroup.killed_for_memory(self._group[1]):
            self.why = "memory"
        if self.why == "ended" and self.status < 0:
            self.why = "cpu" if -self.status == signal.SIGXCPU else f"signal {_signal_name(-self.status)}"

    def _wait(self, seconds: float) -> tuple[bool, bool]:
        """Move what can be moved; whether the program has ended, and whether a cell is done."""
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
            sent = len(self._unsent)  # it has closed its ear; the clock will end it
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
        """What still lies in the pipes: every writer is dead or frozen, so this ends."""
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
    """Turn this process into the program: everything it holds is given up before the first line of it runs.

    `hands` become descriptors 3 and up.
    """
    try:
        if setting.group is not None:
            os.write(setting.group[0], b"0")
        os.setsid()  # no controlling terminal
        kernel.die_with_parent()
        # Moved out of the way first: each of them may stand where another one goes.
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
        kernel.drop_capabilities()  # of root, at the levels that have no user of their own for the box
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
        resource.RLIMIT_CORE: 1,  # not 0: that does not stop a core that the system pipes into a program
    }
    if not session:  # whose processor time is counted for each cell
        bounds[resource.RLIMIT_CPU] = int(limits["cpu_seconds"]) + 1
    if not reserves_memory:  # Node and Java reserve far more addresses than they use
        bounds[resource.RLIMIT_AS] = limits["memory_bytes"]
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (bound, bound))


# ---- everything below this process -----------------------------------------------------------------------------------


def descendants() -> list[int]:
    """Every process below this one."""
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
    """Bytes of memory now and seconds of processor time so far, of everything below this process together.

    Limits by process would count each of them anew. Processes that a parent has waited for count with their parent.
    """
    memory, ticks = 0, 0
    for pid in descendants():
        if words := _stat(f"/proc/{pid}/stat"):
            ticks += sum(map(int, words[11:15]))
            memory += int(words[21]) * _PAGE
    return memory, ticks / _TICKS + sum(os.times()[2:4])


def end_all(child: int, status: int | None = None) -> int:
    """Kill whatever is left below this process and reap it; the child's exit status, or minus its signal.

    `status` is for a child that has been waited for.
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
    if os.getpid() == 1:  # only there does -1 mean the box alone
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
        return str(number)  # one of the real-time signals, most of which have no name


def _states(pid: int) -> list[bytes]:
    """The state of every thread: R and S can still do something."""
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [words[0] for name in names if (words := _stat(f"/proc/{pid}/task/{name}/stat"))]


def _stat(path: str) -> list[bytes] | None:
    """The words of a stat file after the name, from the state on; None when the process has gone."""
    try:
        with open(path, "rb") as file:
            return file.read().rpartition(b")")[2].split() or None
    except OSError:
        return None
