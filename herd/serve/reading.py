"""Bodies of megabytes are read beside the event loop, and hold no more values than are soon looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from herd.serve.errors import ApiError
from herd.serve.memory import give_back

T = TypeVar("T")

MAX_VALUES = 250_000
"""Values in one body, lists and objects included."""
MAX_OBJECTS = 10_000
MAX_NAMES = 50_000  # of fields
_LARGE = 100_000  # bytes
_SLICE = 1 << 16  # bytes that are looked at in one go
_MAX_DEPTH = 900
_HALVES = (b"\\ud", b"\\uD", b"\xed")  # how half a character may be written
_READER = ThreadPoolExecutor(1, thread_name_prefix="body")  # reading JSON keeps Python's lock: one body at a time


class Sound(dict):
    """The JSON object of a large body, looked at already: it is text throughout and not deep."""


class _Read(Request):
    async def json(self) -> Any:
        """The body's JSON."""
        body = await self.body()
        return await _beside(_loaded, body) if len(body) > _LARGE else await super().json()


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
            await _beside(_check_counts, body)
            try:
                return await handle(request)
            finally:
                await asyncio.to_thread(give_back)

        return read


async def _beside(work: Callable[[bytes], T], body: bytes) -> T:
    return await asyncio.get_running_loop().run_in_executor(_READER, work, body)


def _check_counts(body: bytes) -> None:
    """Refuse a body of too many parts before they are made.

    Raises:
        ApiError: 400.
    """
    if _is_much(*_counts(body)):
        values, objects, names = _counts_outside_strings(body)
        if _is_much(values, objects, names):
            raise ApiError(
                400,
                f"The body holds {values:,} values or more, {objects:,} objects, {names:,} names of fields; "
                f"at most {MAX_VALUES:,} values, {MAX_OBJECTS:,} objects and {MAX_NAMES:,} names are taken.",
            )


def _is_much(values: int, objects: int, names: int) -> bool:
    return values > MAX_VALUES or objects > MAX_OBJECTS or names > MAX_NAMES


def _counts(text: bytes) -> tuple[int, int, int]:
    objects = text.count(b"{")
    return text.count(b",") + text.count(b"[") + objects, objects, text.count(b":")


def _counts_outside_strings(body: bytes) -> tuple[int, int, int]:
    """Slice by slice, so that other threads have their turn."""
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    values = objects = names = quotes = 0
    for start in range(0, len(body), _SLICE):
        parts = body[start : start + _SLICE].split(b'"')
        counts = _counts(b" ".join(parts[quotes % 2 :: 2]))
        values, objects, names = values + counts[0], objects + counts[1], names + counts[2]
        quotes += len(parts) - 1
        if _is_much(values, objects, names):
            break
    return values, objects, names


def _loaded(body: bytes) -> Any:
    content = json.loads(body)
    if not isinstance(content, dict):
        return content
    is_flat = body.count(b"[") + body.count(b"{") < _MAX_DEPTH
    is_text = not any(mark in body for mark in _HALVES)
    return Sound(content) if (is_flat and is_text) or _is_sound(content) else content


def _is_sound(content: dict[str, Any]) -> bool:
    """It holds no half of a character, and is not too deep."""
    parts: list[tuple[Any, int]] = [(content, 0)]
    try:
        while parts:
            part, depth = parts.pop()
            if isinstance(part, str):
                part.encode()
            elif isinstance(part, list | dict):
                if depth >= _MAX_DEPTH:
                    return False
                if isinstance(part, dict):
                    for name in part:
                        name.encode()
                    part = list(part.values())
                parts += [(item, depth + 1) for item in part if isinstance(item, str | list | dict)]
    except UnicodeEncodeError:
        return False
    return True
