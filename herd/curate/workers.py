"""Processes that stay: started once for all the maps of a run, since starting one costs more than most parts do.

A worker reads one JSON object a line, `{"task", "job", "folder"}`, and answers each with one line. It ends when its
input does, so none outlives the process that started it. On Linux workers are forks of one process, the nursery, which
imports what tasks need once for all of them and runs nothing (its threads are those of allocators and of BLAS, which
know of forks), so that forks of it are safe whatever the process that asks is made of. Elsewhere each worker is this
module run as a program.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.abc import MetaPathFinder
from typing import IO, Any, NamedTuple

from herd import errors
from herd.errors import UserError

Task = Callable[[dict], dict]


class _Worker(NamedTuple):
    """A process at the other end of two streams."""

    pid: int
    requests: IO[bytes]
    answers: IO[bytes]
    status: Callable[[], int]  # waits until it has ended


class Workers:
    """Processes of this machine that run tasks; `run` may be called from many threads."""

    def __init__(self):
        self._change = threading.Condition()
        self._busy = 0
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._nursery: _Nursery | None = None
        self._modules: set[str] = set()
        atexit.register(self.close)

    def expect(self, tasks: Collection[Task]) -> None:
        """Say which tasks will come, so that what they need is imported once for all workers."""
        self._modules.update(task.__module__ for task in tasks)

    def run(self, task: Task, job: str, most: int) -> str:
        """The outcome of a task, in an idle process or in a new one; `result_of` makes the result of it.

        `task` is a function of a module: it travels by name. `job` and the outcome are JSON. No more than `most`
        processes work at once.
        """
        with self._change:
            self._change.wait_for(lambda: self._busy < most)
            self._busy += 1
            worker = self._idle.pop() if self._idle else None
        try:
            worker = worker or self._start(task)
            answer = _ask(worker, {"task": [task.__module__, task.__qualname__], "job": job, "folder": os.getcwd()})
            if answer is None:
                self._all.remove(worker)
                return _ended(worker.status())
            self._idle.append(worker)
            return answer
        except ChildProcessError as error:
            self._nursery = None
            return _ended(int(error.args[0]))
        finally:
            with self._change:
                self._busy -= 1
                self._change.notify()

    def _start(self, task: Task) -> _Worker:
        with self._change:
            if _CAN_FORK and self._nursery is None:
                self.expect([task])
                self._nursery = _Nursery(self._modules)
            worker = self._nursery.fork() if self._nursery else _program()
            self._all.append(worker)
        return worker

    def close(self) -> None:
        """End all processes, those at work too."""
        for worker in self._all:
            with suppress(ProcessLookupError):  # where the nursery was killed, somebody else has taken leave of it
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self._all:
            worker.answers.read()
            with suppress(ChildProcessError):
                worker.status()
        if self._nursery is not None:
            self._nursery.close()
        self._all.clear()
        self._idle.clear()
        self._nursery = None


def _ask(worker: _Worker, request: dict[str, Any]) -> str | None:
    """A worker's answer, or None where it has ended."""
    try:
        worker.requests.write(json.dumps(request).encode() + b"\n")
        worker.requests.flush()
        answer = worker.answers.readline()
    except (BrokenPipeError, ConnectionResetError):
        return None
    return answer.decode() if answer.endswith(b"\n") else None


def _ended(status: int) -> str:
    told = f"signal {-status}" if status < 0 else f"exit status {status}"
    message = f"a process that worked on a part was ended ({told}); if memory ran out, set work.processes or "
    message += "work.part_bytes lower. Run the same command again to go on"
    return json.dumps({"error": "UserError", "message": message})


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def _program() -> _Worker:
    """A worker that is a program of its own."""
    command = [sys.executable, "-P", "-m", __name__]
    process = subprocess.Popen(command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    return _Worker(process.pid, process.stdin, process.stdout, process.wait)


_CAN_FORK = sys.platform == "linux"


class _Nursery:
    """A process that has imported some modules, and forks into workers.

    It is asked over a socket: with an end of another socket for a worker that listens there, answered with its number;
    with such a number for the status that this worker ended with. Both are four bytes.
    """

    def __init__(self, modules: Collection[str]):
        self._control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), *modules]
            given = [theirs.fileno()]
            self._process = subprocess.Popen(command, env=_environment(), stdin=subprocess.DEVNULL, pass_fds=given)

    def fork(self) -> _Worker:
        """A new worker.

        Raises:
            ChildProcessError: the nursery has ended; its status.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask(lambda: socket.send_fds(self._control, [bytes(4)], [theirs.fileno()]))
        return _Worker(pid, ours.makefile("wb"), ours.makefile("rb"), functools.partial(self.status, pid))

    def status(self, pid: int) -> int:
        """How a worker ended, once it has: its exit status, or the number of a signal below zero."""
        return self._ask(lambda: self._control.sendall(_four(pid)))

    def _ask(self, send: Callable[[], Any]) -> int:
        with self._lock:
            try:
                send()
                answer = self._control.recv(4, socket.MSG_WAITALL)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
        if len(answer) < 4:
            raise ChildProcessError(self._process.wait())
        return int.from_bytes(answer, "big", signed=True)

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.terminate()
        self._process.wait()


def _four(number: int) -> bytes:
    return number.to_bytes(4, "big", signed=True)


@functools.cache
def workers() -> Workers:
    """The workers of this process."""
    return Workers()


# ---- outcomes: errors travel as values -------------------------------------------------------------------------------


def outcome_of(task: Task, job: dict[str, Any]) -> dict[str, Any]:
    """What a task returns or raises, as plain data."""
    try:
        return {"result": task(job)}
    except UserError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        return {"error": "OSError", "errno": error.errno or errno.EIO, "message": error.strerror or str(error)} | {
            "file": str(error.filename) if error.filename else None
        }


def result_of(outcome: dict[str, Any]) -> dict[str, Any]:
    """The result that an outcome holds.

    Raises:
        UserError, OSError, RuntimeError: what the task raised; a fault of the program with its own traceback.
    """
    if "error" not in outcome:
        return outcome["result"]
    if outcome["error"] == "OSError":
        raise OSError(outcome["errno"], outcome["message"], outcome["file"])
    if outcome["error"] == "RuntimeError":
        raise RuntimeError(outcome["message"])
    raise getattr(errors, outcome["error"])(outcome["message"])


# ---- the worker's side -----------------------------------------------------------------------------------------------


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    gc.freeze()  # what was imported stays; it need not be looked through again and again
    gc.set_threshold(*_GARBAGE)
    for line in requests:
        request = json.loads(line)
        try:
            os.chdir(request["folder"])
            module, name = request["task"]
            outcome = outcome_of(getattr(importlib.import_module(module), name), json.loads(request["job"]))
        except Exception:
            outcome = {"error": "RuntimeError", "message": traceback.format_exc()}
        answers.write(json.dumps(outcome).encode() + b"\n")
        answers.flush()


_GARBAGE = 50_000, 20, 20  # a page is thousands of objects, none of which is garbage before the next page


def nurse(control: socket.socket, modules: Collection[str]) -> None:
    """Import modules, then fork into workers as long as somebody asks."""
    for module in modules:
        importlib.import_module(module)
    while True:
        message, ends, _, _ = socket.recv_fds(control, 4, 1)
        if not message:
            return
        if not ends:
            _, status = os.waitpid(int.from_bytes(message, "big"), 0)
            control.sendall(_four(os.waitstatus_to_exitcode(status)))
        elif pid := _fork():
            os.close(ends[0])
            control.sendall(_four(pid))
        else:
            control.close()
            with socket.socket(fileno=ends[0]) as line:
                serve(line.makefile("rb"), line.makefile("wb"))
            os._exit(0)


class _NoPandas(MetaPathFinder):
    """Arrow imports pandas where it is installed, to know its objects; tasks have none."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuse pandas, and leave every other module to the others."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python counts threads of any kind
        return os.fork()


def main(arguments: list[str]) -> None:
    """Be a worker, or with a socket's number and modules the nursery."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it is told, and ends it
    sys.meta_path.insert(0, _NoPandas())
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints is no answer
    if arguments:
        answers.close()
        nurse(socket.socket(fileno=int(arguments[0])), arguments[1:])
    else:
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
