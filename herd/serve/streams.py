"""A response that is streamed, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from herd.serve.record import RequestRecord

_READING_SECONDS = 5.0  # to read the end of a stream, after the time for its answer


class Streamed(Protocol):
    """What is streamed."""

    seconds: float  # that it may take
    record: RequestRecord

    def events(self) -> AsyncGenerator[str]:
        """Server-sent events."""
        ...


class EventStream(StreamingResponse):
    """The response that is streamed. A client who does not read is waited for no longer than for an answer."""

    def __init__(self, run: Streamed) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._run, self._events = run, run.events()
        super().__init__(self._events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The events are closed here and not by the collector, whatever happens."""
        try:
            async with asyncio.timeout(self._run.seconds + _READING_SECONDS), aclosing(self._events):
                await self.stream_response(send)
        except TimeoutError:
            self._run.record.error = "not_read"  # uvicorn closes a connection whose response was left unfinished


async def gone(http: Request) -> None:
    """Ends when the client's side is closed, or the response is out."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
