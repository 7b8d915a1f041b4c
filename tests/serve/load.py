"""Many clients at once against a server in a process of its own: polite, vanishing, sending rubbish."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

CLIENTS = 200
INTENDED = {200, 400, 404, 413, 429, "left"}
"""What a client may meet: answers, refusals of what it did wrong, a full queue, and its own leaving."""

_SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}


@dataclass(frozen=True)
class Process:
    """A server that runs, and where it listens."""

    url: str
    pid: int
    log: Path

    def resident_bytes(self) -> int:
        """The memory that its process holds now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(
    folder: Path, *words: str, threads: int | None = 1, seconds: float = 60.0, files: int | None = None
) -> Iterator[Process]:
    """`herd serve` on a model's folder, as users start it, on a free port; `threads` None leaves them as they are.

    `files` is its limit of open files.
    """
    command = [sys.executable, "-m", "herd", "serve", str(folder), "port=0", "log.form=off", *words]
    if files is not None:
        command = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "-", *command]
    environment = os.environ | {"HERD_QUIET": ""} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    log = folder.parent / "serve.log"
    with open(log, "wb") as told, subprocess.Popen(command, stderr=told, env=environment) as process:
        until = time.monotonic() + seconds
        while not (found := re.search(r"localhost:(\d+)/v1", log.read_text())):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        try:
            yield Process(f"http://localhost:{found.group(1)}", process.pid, log)
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0, log.read_text()


async def besiege(url: str, seconds: float, clients: int = CLIENTS) -> collections.Counter:
    """How often each status came back to clients that asked again and again; `left` where a client went away."""
    counts: collections.Counter = collections.Counter()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def visit(number: int) -> None:
            luck, until = random.Random(number), time.monotonic() + seconds
            while time.monotonic() < until:
                counts[await _ask(client, url, luck)] += 1

        await asyncio.gather(*(visit(number) for number in range(clients)))
    return counts


async def _ask(client: httpx.AsyncClient, url: str, luck: random.Random) -> int | str:
    kind = luck.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    try:
        status = await _KINDS[kind][1](client, url, luck)
    except httpx.TransportError as fault:
        return f"{kind}: {fault!r}"
    if status == 429:
        await asyncio.sleep(luck.uniform(0.1, 0.5))
    return status


def _body(luck: random.Random) -> dict:
    body = {
        "prompt": f"number {luck.randrange(1000)}",
        "max_tokens": luck.randrange(1, 40),
        "n": luck.choice((1, 1, 3)),
    }
    extras = (
        {},
        {"temperature": 0},
        {"presence_penalty": 1},
        {"logprobs": 2},
        {"stop": ["e"]},
        {"seed": 1, "echo": True},
    )
    return body | luck.choice(extras)


async def _whole(client: httpx.AsyncClient, url: str, luck: random.Random) -> int:
    response = await client.post("/v1/completions", json=_body(luck))
    if response.status_code == 200:
        assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")
    return response.status_code


async def _streamed(client: httpx.AsyncClient, url: str, luck: random.Random) -> int:
    body = _body(luck)
    body.pop("logprobs", None)
    response = await client.post("/v1/completions", json=body | {"stream": True})
    if response.status_code == 200:
        assert response.text.endswith("data: [DONE]\n\n")
    return response.status_code


async def _chat(client: httpx.AsyncClient, url: str, luck: random.Random) -> int:
    body = {"messages": [{"role": "user", "content": f"number {luck.randrange(1000)}"}], "max_tokens": 40}
    forms = (
        {},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}}},
        {"tools": [_TOOL], "tool_choice": "required"},
        {"tools": [_TOOL]},
    )
    return (await client.post("/v1/chat/completions", json=body | luck.choice(forms))).status_code


async def _other(client: httpx.AsyncClient, url: str, luck: random.Random) -> int:
    path, body = luck.choice(
        (
            ("/v1/embeddings", {"input": ["a", "b c"]}),
            ("/tokenize", {"prompt": "naïve"}),
            ("/detokenize", {"tokens": [1, 2, 3]}),
        )
    )
    return (await client.post(path, json=body)).status_code


async def _leave(client: httpx.AsyncClient, url: str, luck: random.Random) -> int | str:
    """Read the beginning of a stream and go."""
    async with client.stream("POST", "/v1/completions", json=_body(luck) | _LONG) as response:
        if response.status_code != 200:
            return response.status_code
        await anext(response.aiter_lines())
        return "left"


_LONG = {"stream": True, "max_tokens": 200, "logprobs": None}


async def _vanish(client: httpx.AsyncClient, url: str, luck: random.Random) -> str:
    """Send a request, or half of one, and hang up without a word."""
    body = json.dumps(_body(luck) | {"max_tokens": 200}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    sent = (head + "Content-Type: application/json\r\n\r\n").encode() + body
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent[: luck.randrange(1, len(sent) + 1)])
    await writer.drain()
    await asyncio.sleep(luck.uniform(0, 0.2))
    writer.close()
    return "left"


async def _rubbish(client: httpx.AsyncClient, url: str, luck: random.Random) -> int:
    content = luck.choice((luck.randbytes(50), b"{", b"[]", b'{"prompt": 5}', b'{"prompt": "x", "n": -1}', b"[" * 5000))
    path = luck.choice(("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/v1/nothing"))
    headers = {"Content-Type": "application/json"}
    return (await client.post(path, content=content, headers=headers)).status_code


_KINDS = {
    "whole": (30, _whole),
    "streamed": (25, _streamed),
    "chat": (15, _chat),
    "other": (5, _other),
    "leave": (10, _leave),
    "vanish": (7, _vanish),
    "rubbish": (8, _rubbish),
}


async def abandon(url: str, num_requests: int, clients: int = 40) -> collections.Counter:
    """Send many long requests, with long prompts and grammars, and leave every one: in the queue or in its middle."""
    counts: collections.Counter = collections.Counter()
    numbers = iter(range(num_requests))
    host, _, port = url.removeprefix("http://").partition(":")

    async def leave(number: int) -> None:
        luck = random.Random(number)
        text = luck.choice(("x", "number " * 300)) + str(number)
        forms = ({}, {"n": 8}, {"structured_outputs": {"json": _LISTS}}, {"stop": ["e"]}, {"logprobs": 5})
        body = {"prompt": text, "max_tokens": 1000, "stream": luck.random() < 0.8} | luck.choice(forms)
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write((head + "Content-Type: application/json\r\n\r\n").encode() + content)
        try:
            async with asyncio.timeout(luck.uniform(0, 1.5)):
                status = int((await reader.readline()).split()[1])
                counts[status] += 1
                await reader.read(luck.randrange(5000))
        except TimeoutError:
            counts["left"] += 1
        writer.transport.abort()

    async def visit() -> None:
        for number in numbers:
            await leave(number)

    await asyncio.gather(*(visit() for _ in range(clients)))
    return counts


_LISTS = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}}},
}


async def settle(url: str, seconds: float = 30.0) -> dict:
    """The server's health once nobody is answered any more."""
    async with httpx.AsyncClient(base_url=url) as client:
        until = time.monotonic() + seconds
        while True:
            health = (await client.get("/health")).json()
            if health["running"] + health["waiting"] == 0 or time.monotonic() > until:
                return health
            await asyncio.sleep(0.1)
