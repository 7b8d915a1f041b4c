"""Bodies of megabytes are read beside the event loop, and hold no more values than are soon looked at."""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from herd.serve.errors import ApiError

MAX_VALUES = 400_000
"""Values in one body, lists and objects included."""
_LARGE = 100_000  # bytes


class _Read(Request):
    async def json(self) -> Any:
        """The body's JSON."""
        body = await self.body()
        return await asyncio.to_thread(json.loads, body) if len(body) > _LARGE else await super().json()


class Apart(APIRoute):
    """A route whose large bodies keep nobody else waiting, and whose memory is given back."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            request = _Read(request.scope, request.receive)
            try:
                body = await request.body()
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            if len(body) <= _LARGE:
                return await handle(request)
            if (count := body.count(b",") + body.count(b"[") + body.count(b"{")) > MAX_VALUES and (
                _num_values(body) > MAX_VALUES
            ):
                raise ApiError(400, f"The body holds {count:,} values or more; at most {MAX_VALUES:,} are taken.")
            try:
                return await handle(request)
            finally:
                await asyncio.to_thread(give_back)

        return read


def _num_values(body: bytes) -> int:
    """Commas and brackets outside of strings."""
    parts = body.replace(b'\\"', b"").split(b'"')[::2]
    return sum(part.count(b",") + part.count(b"[") + part.count(b"{") for part in parts)


def give_back() -> None:
    """Memory that is free goes back to the system, where its allocator keeps it (glibc)."""
    if trim := _trim():
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
