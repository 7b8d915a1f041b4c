"""Processes that stay: started once for all the maps of a run, since starting one costs more than most parts do.

A worker is this module run as a program. It reads one JSON object a line, `{"task", "job", "folder"}`, and answers each
with one line. It ends when its input does, so none outlives the process that started it.
"""

from __future__ import annotations

import atexit
import errno
import functools
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

from herd import errors
from herd.errors import UserError

Task = Callable[[dict], dict]


class Workers:
    """Processes of this machine that run tasks; `run` may be called from many threads."""

    def __init__(self):
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        self._all: list[subprocess.Popen] = []
        atexit.register(self.close)

    def run(self, task: Task, job: str) -> str:
        """The outcome of a task, in an idle process or in a new one; `result_of` makes the result of it.

        `task` is a function of a module: it travels by name. `job` and the outcome are JSON.
        """
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = self._start()
        request = {"task": [task.__module__, task.__qualname__], "job": job, "folder": os.getcwd()}
        answer = b""
        assert worker.stdin and worker.stdout
        try:
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer.endswith(b"\n"):
            status = worker.wait()
            told = f"signal {-status}" if status < 0 else f"exit status {status}"
            message = f"a process that worked on a part was ended ({told}); if memory ran out, set work.processes or "
            message += "work.part_bytes lower. Run the same command again to go on"
            return json.dumps({"error": "UserError", "message": message})
        self._idle.put(worker)
        return answer.decode()

    def _start(self) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-P", "-m", __name__]
        worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._all.append(worker)
        return worker

    def close(self) -> None:
        """End all processes, those at work too."""
        for worker in self._all:
            worker.terminate()
        for worker in self._all:
            worker.communicate()
        self._all.clear()


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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it is told, and ends it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints is no answer
    serve(sys.stdin.buffer, answers)
