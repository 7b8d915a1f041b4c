"""Grammars that strangers send, tried in processes of their own before the server compiles them.

Two at a time: whoever sends many waits for himself and for other grammars, never for plain requests. A trial has a
deadline and ends when its client goes away; the process is ended then, and with it all the memory that it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from herd.errors import RequestError
from herd.infer import trial
from herd.infer.engine import Engine
from herd.infer.grammar import Compiler, form_of
from herd.serve.errors import ApiError
from herd.types import SamplingParams

MOST_WAITING = 64
"""Grammars that may wait to be tried."""
_AT_ONCE = 2
_SECONDS = 60.0  # by the clock, the start of a process included, on a machine that is busy otherwise
_WORDS = (sys.executable, "-P", "-m", trial.__name__)
T = TypeVar("T")


class Trials:
    """The processes that try grammars, two at most; each knows one model's vocabulary."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._idle: dict[Engine, list[asyncio.subprocess.Process]] = defaultdict(list)
        self._first: dict[Engine, bytes] = {}
        self._waiting = 0
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="grammar")

    async def in_turn(
        self, engine: Engine, params: SamplingParams, gone: asyncio.Task[None], make: Callable[[], T]
    ) -> T:
        """What `make` gives, in a thread: for a request with a grammar, once that was tried, and among few others.

        Raises:
            ApiError: too many grammars wait, or the client is gone.
            RequestError: the grammar is wrong, or takes too much time or memory.
        """
        form = form_of(params)
        if form is None:
            return await asyncio.to_thread(make)
        if self._waiting >= MOST_WAITING:
            raise ApiError(429, f"{self._waiting} grammars wait already; try again soon.", code="queue_full")
        self._waiting += 1
        try:
            await _unless_gone(self._try(engine, form, params), gone)
        finally:
            self._waiting -= 1
        return await asyncio.get_running_loop().run_in_executor(self._threads, make)

    async def _try(self, engine: Engine, form: str, params: SamplingParams) -> None:
        value = getattr(params, form)
        compiler: Compiler = engine.guides.compiler
        await asyncio.to_thread(compiler.check, form, value)
        line = await asyncio.to_thread(lambda: json.dumps([form, value]).encode() + b"\n")
        async with self._turn:
            try:
                async with asyncio.timeout(_SECONDS):
                    process = self._idle[engine].pop() if self._idle[engine] else await self._start(engine)
                    answer = await _asked(process, line)
            except TimeoutError:
                answer = b""
        if not answer:
            raise RequestError(
                f"{form} cannot be followed: it takes more than {trial.SECONDS:g} s or too much memory to compile; "
                "give a simpler one"
            )
        self._idle[engine].append(process)
        if fault := json.loads(answer)["fault"]:
            raise RequestError(fault)

    async def _start(self, engine: Engine) -> asyncio.subprocess.Process:
        others = [process for idle in self._idle.values() for process in idle]
        if len(others) >= _AT_ONCE:  # of other models
            for idle in self._idle.values():
                idle.clear()
            await asyncio.gather(*map(_end, others))
        if engine not in self._first:
            self._first[engine] = await asyncio.to_thread(trial.first_line, engine.guides.compiler)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_WORDS, stdin=pipe, stdout=pipe, env=environment, start_new_session=True
        )
        assert process.stdin is not None
        try:
            process.stdin.write(self._first[engine])
            await process.stdin.drain()
        except BaseException:
            await _end(process)
            raise
        return process

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(_end(process) for idle in self._idle.values() for process in idle))
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _asked(process: asyncio.subprocess.Process, line: bytes) -> bytes:
    """The answer of a process; empty where it died. Whoever does not wait for it ends the process."""
    assert process.stdin is not None and process.stdout is not None
    answer = b""
    try:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(line)
            await process.stdin.drain()
        answer = await process.stdout.readline()
    finally:
        if not answer:
            await _end(process)
    return answer


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # asyncio's own way takes the status that it then waits for
    await asyncio.shield(process.wait())


async def _unless_gone(work: Awaitable[T], gone: asyncio.Task[None]) -> T:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client closed the connection.", code="gone")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
