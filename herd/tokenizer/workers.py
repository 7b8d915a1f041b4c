"""A pool of processes for counting and encoding.

They are started as new interpreters, not forked: this is safe with threads and needs no `__main__` guard in the
caller's script. They end when their pipe closes, so they never outlive the process that started them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Any

from herd.errors import CapacityError

_KILLED = "a worker process was killed while counting or encoding; is there too little memory?"
_AHEAD = 2  # unanswered items per process
_START = "from herd.tokenizer.workers import work; work()"


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(texts: Iterable[str], num_chars: int) -> Iterator[list[str]]:
    """Texts in order, in lists of about `num_chars` characters, one for each task of a process."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= num_chars:
            yield part
            part, size = [], 0
    if part:
        yield part


class Workers:
    """One process per core, all applying the same function (which must be picklable)."""

    def __init__(self, function: Callable[[Any], Any], num: int | None = None) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._processes = [
            subprocess.Popen([sys.executable, "-c", _START], stdin=-1, stdout=-1, env=environment)
            for _ in range(num or num_cores())
        ]
        self._stop = weakref.finalize(self, _stop, self._processes, os.getpid())
        self._pid = os.getpid()
        for process in self._processes:
            _send(process, function)

    @property
    def usable(self) -> bool:
        """Whether they run and belong to this process (not to a parent that forked it)."""
        return self._stop.alive and self._pid == os.getpid()

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The function's results in the order of the items; at most two items per process are taken ahead.

        The processes end when the results are not all taken, or when one of them fails.

        Raises:
            CapacityError: a process was killed.
        """
        waiting: deque[subprocess.Popen] = deque()
        try:
            for item, process in zip(items, cycle(self._processes)):
                if len(waiting) == _AHEAD * len(self._processes):
                    yield _receive(waiting.popleft())
                _send(process, item)
                waiting.append(process)
            while waiting:
                yield _receive(waiting.popleft())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        self._stop()


def work() -> None:
    """The main loop of a worker: receive a function, then apply it to each item.

    A thread reads the next item meanwhile. So the parent can always send, and no process waits for the parent's turn.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing printed may mix with the results
    function = pickle.load(sys.stdin.buffer)
    arrived: queue.Queue = queue.Queue(_AHEAD)
    threading.Thread(target=_read_items, args=(arrived,), daemon=True).start()
    while (parcel := arrived.get()) is not None:
        item, parcel = parcel[0], None
        try:
            result = (True, function(item))
        except Exception as error:
            result = (False, error)
        try:
            pickle.dump(result, results, protocol=pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:
            return


def _read_items(arrived: queue.Queue) -> None:
    """Each item of the parent in a tuple, and None at the end."""
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            arrived.put((pickle.load(sys.stdin.buffer),))
    arrived.put(None)


def _send(process: subprocess.Popen, item: Any) -> None:
    assert process.stdin is not None
    try:
        pickle.dump(item, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    except BrokenPipeError:
        raise CapacityError(_KILLED) from None


def _receive(process: subprocess.Popen) -> Any:
    assert process.stdout is not None
    try:
        good, result = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise CapacityError(_KILLED) from None
    if not good:
        raise result
    return result


def _stop(processes: list[subprocess.Popen], owner: int) -> None:
    if os.getpid() != owner:
        return
    for process in processes:
        process.kill()
    for process in processes:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()
