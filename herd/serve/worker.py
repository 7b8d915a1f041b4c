"""One thread that drives the engines, and the bridge from it to the server's event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from herd.infer.engine import Engine
from herd.infer.request import Piece, Request

_log = logging.getLogger("herd.serve")
T = TypeVar("T")
_AT_ONCE = 256  # pieces that one client is written before others have their turn


class Worker:
    """Runs the engines' steps in a thread of its own as long as there is work.

    One thread for all: two models that compute at once would only take each other's cores. They take turns step by
    step, and other work on the models (`run`) comes between the steps.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self._open: dict[Request, Engine] = {}
        self._jobs: deque[tuple[Future, Callable[[], object]]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step in progress and end the thread; open requests are left unanswered."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        while self._jobs:
            self._jobs.popleft()[0].cancel()

    @property
    def is_alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    def submit(self, engine: Engine, request: Request) -> None:
        """Queue a request and wake the thread."""
        self._open[request] = engine
        engine.submit(request)
        self._wake.set()

    def cancel(self, engine: Engine, request: Request) -> None:
        """End a request that nobody waits for any more; its blocks are free before the next step."""
        self._open.pop(request, None)
        engine.cancel(request)
        self._wake.set()

    def cancel_all(self) -> None:
        """End every open request; whoever waits for it sees it end as `cancelled`."""
        for request, engine in list(self._open.items()):
            self.cancel(engine, request)

    async def run(self, job: Callable[[], T]) -> T:
        """The result of a job that the thread does between two steps."""
        future: Future = Future()
        self._jobs.append((future, job))
        self._wake.set()
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while not self._stopping:
            busy = [engine for engine in self.engines if engine.has_work]
            for engine in busy:
                try:
                    engine.step()
                except Exception:
                    _log.exception("a step of the engine failed; its requests were ended")
            if self._jobs:
                self._do(*self._jobs.popleft())
            elif not busy:
                self._wake.wait()
                self._wake.clear()

    def _do(self, future: Future, job: Callable[[], object]) -> None:
        if not future.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)


class PieceRelay:
    """Passes pieces of one or several requests from the engine's thread to the event loop that created it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[int, Piece]] = deque()
        self._arrived = asyncio.Event()
        self._woken = True  # the loop is awake, or will be: a new piece need not wake it
        self._due = math.inf  # when whoever waits is woken though nothing came
        self._alarm: asyncio.TimerHandle | None = None
        self._still_open = 0
        self._submit: Callable[[Request], None] = lambda request: None

    def go_on(self, request: Request) -> None:
        """One more request of which pieces are awaited."""
        self._still_open += request.params.n
        self._submit(request)

    def hold(self, count: int) -> None:
        """So many answers go on without a request for now; negative where they have one again, or ended."""
        self._still_open += count

    def say(self, index: int, piece: Piece) -> None:
        """Pass on a piece that no engine made; it may end an answer."""
        self._still_open += piece.finish_reason is not None
        self._waiting.append((index, piece))
        self._arrived.set()

    def listener(self, first_index: int) -> Callable[[Piece], None]:
        """What to give a request whose answers are numbered from `first_index` on."""

        def put(piece: Piece) -> None:
            self._waiting.append((first_index + piece.index, piece))
            if not self._woken and not self._loop.is_closed():
                self._woken = True
                self._loop.call_soon_threadsafe(self._arrived.set)

        return put

    async def pieces(
        self,
        worker: Worker,
        engine: Engine,
        requests: Sequence[Request],
        until: float | None = None,
        quiet_seconds: float | None = None,
    ) -> AsyncGenerator[list[tuple[int, Piece]]]:
        """Submit the requests and pass on what there is of (answer's number, piece) until all have ended.

        Where nothing comes for `quiet_seconds`, an empty list is passed on. Leaving early cancels the requests.

        Raises:
            TimeoutError: they have not ended at the time (of the event loop) `until`.
            RequestError: a request turned out to be impossible midway.
            RuntimeError: the engine failed on a request.
        """
        self._submit = functools.partial(worker.submit, engine)
        for request in requests:
            self.go_on(request)
        try:
            while self._still_open:
                if not await self._has_arrived(until, quiet_seconds):
                    yield []
                    continue
                there = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                if self._waiting:
                    await asyncio.sleep(0)
                self._still_open -= sum(piece.finish_reason is not None for _, piece in there)
                yield there
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            for request in requests:
                worker.cancel(engine, request)
        for request in requests:
            request.raise_error()

    async def _has_arrived(self, until: float | None, quiet_seconds: float | None) -> bool:
        """Wait for something to pass on; false when it was quiet for so long."""
        now, end = self._loop.time(), math.inf if until is None else until
        self._due = end if quiet_seconds is None else min(end, now + quiet_seconds)
        while not self._waiting:
            if now >= self._due:
                if now >= end:
                    raise TimeoutError
                return False
            if self._alarm is None and self._due < math.inf:
                self._alarm = self._loop.call_at(self._due, self._ring)
            self._arrived.clear()
            self._woken = False  # first this, then the look: a piece that comes now is told of
            if not self._waiting:
                await self._arrived.wait()
            now = self._loop.time()
        return True

    def _ring(self) -> None:
        """Wake who waits in vain. One timer runs on from piece to piece: one for each would cost more than a piece."""
        self._alarm = None
        if self._loop.time() < self._due:
            self._alarm = self._loop.call_at(self._due, self._ring)
        else:
            self._arrived.set()
