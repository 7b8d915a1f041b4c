"""One thread that drives the engine, and the bridge from it to the server's event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from herd.infer.engine import Engine
from herd.infer.request import Piece, Request

_log = logging.getLogger("herd.serve")


class Worker:
    """Runs the engine's steps in a thread of its own as long as there is work."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
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

    @property
    def is_alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request and wake the thread."""
        self.engine.submit(request)
        self._wake.set()

    def cancel(self, request: Request) -> None:
        """End a request that nobody waits for any more; its blocks are free before the next step."""
        self.engine.cancel(request)
        self._wake.set()

    def _work(self) -> None:
        while not self._stopping:
            if self.engine.has_work:
                try:
                    self.engine.step()
                except Exception:
                    _log.exception("a step of the engine failed; its requests were ended")
            else:
                self._wake.wait()
                self._wake.clear()


class Conveyor:
    """Hands pieces of one or several requests from the engine's thread to the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def listener(self, first_index: int) -> Callable[[Piece], None]:
        """What to give a request whose answers are numbered from `first_index` on."""

        def put(piece: Piece) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (first_index + piece.index, piece))

        return put

    async def pieces(self, worker: Worker, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Piece]]:
        """Submit the requests and pass on (answer's number, piece) until all have ended; leaving early cancels them.

        Raises:
            RuntimeError: the engine failed on a request.
        """
        still_open = sum(request.params.n for request in requests)
        for request in requests:
            worker.submit(request)
        try:
            while still_open:
                index, piece = await self._queue.get()
                still_open -= piece.finish_reason is not None
                yield index, piece
        finally:
            for request in requests:
                worker.cancel(request)
        for request in requests:
            if request.error is not None:
                raise RuntimeError("the engine failed on this request") from request.error
