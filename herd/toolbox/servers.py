"""Tools of MCP servers (Model Context Protocol), started as a command or reached by their address.

What a server says of its tools is read when it is first named, and kept by its hash: the model is told those words and
no others, and a tool whose description has changed is not called before its owner has allowed it again. What a tool
brings is a stranger's: it is told to the model as text, after the guards.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from herd.errors import ConfigError, DataError
from herd.log import say
from herd.run import atomic_write
from herd.toolbox.errand import Errand, Failed

MAX_TOOLS = 64
_MAX_PAGES = 20
_MAX_CHARACTERS = 20_000  # of one tool's description with its schema
_NAME = re.compile(r"[^A-Za-z0-9_-]")
_SHARE = 0.9  # of a call's time, so that it ends here with its reason and not from outside without


class McpServer:
    """One server, and the connection to it: opened by the first call, opened again after it broke."""

    def __init__(self, name: str, address: str, *, seconds: float) -> None:
        self.name, self.address, self.seconds = name, address, seconds * _SHARE
        self.allowed: dict[str, str] = {}  # hash of each tool as it was allowed
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._turn = asyncio.Lock()

    async def tools(self) -> list[dict[str, Any]]:
        """Name, description and schema of its tools, as it tells them now.

        Raises:
            Failed: it cannot be reached, does not answer in time, or tells too much.
        """
        return await self._asked(self._listed)

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """What a tool answers, as text.

        Raises:
            Failed: it fails, has vanished, hangs, or is no longer described as it was when it was allowed.
        """

        async def ask(client: Any) -> Any:
            now = {tool["name"]: fingerprint(tool) for tool in await self._listed(client)}
            if now.get(name) != self.allowed[name]:
                state = "is gone" if name not in now else "is described otherwise than when it was allowed"
                raise Failed(f"the tool {name} of {self.name} {state}; its owner has to allow it again")
            return await client.call_tool(name, arguments)

        result = await self._asked(ask)
        text = "\n".join(map(_told, result.content))
        if not text and result.structured_content is not None:
            text = json.dumps(result.structured_content, ensure_ascii=False)
        if result.is_error:
            raise Failed(text or "failed without a word")
        return text

    async def close(self) -> None:
        """End the connection, and a server that was started for it."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self.seconds)
            self._task.cancel()
        self._client = self._task = None

    async def _listed(self, client: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                found.append({"name": tool.name, "description": tool.description or "", "schema": tool.input_schema})
                if len(json.dumps(found[-1])) > _MAX_CHARACTERS:
                    raise Failed(f"{self.name}: the description of its tool {tool.name} is too long")
            if len(found) > MAX_TOOLS:
                raise Failed(f"{self.name} offers more than {MAX_TOOLS} tools")
            cursor = page.next_cursor
            if cursor is None:
                return found
        raise Failed(f"{self.name} tells of its tools without end")

    async def _asked(self, ask: Any) -> Any:
        try:
            async with asyncio.timeout(self.seconds):
                return await ask(await self._connected())
        except Failed:
            raise
        except TimeoutError:
            await self._drop()
            raise Failed(f"{self.name} has not answered after {self.seconds:.3g} s") from None
        except Exception as error:
            await self._drop()
            raise Failed(f"{self.name} cannot be asked: {_reason(error)}") from None

    async def _connected(self) -> Any:
        async with self._turn:
            if self._task is not None and self._task.done():
                self._client = self._task = None
            if self._client is None:
                self._stop = asyncio.Event()
                ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._task = asyncio.create_task(self._hold(ready, self._stop))
                try:
                    self._client = await ready
                except asyncio.CancelledError:
                    self._task.cancel()
                    raise
            return self._client

    async def _hold(self, ready: asyncio.Future[Any], stop: asyncio.Event) -> None:
        """Keep the connection in one task from its beginning to its end, as the package wants it."""
        try:
            async with _opened(self.name, self.address, self.seconds) as client:
                ready.set_result(client)
                await stop.wait()
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)

    async def _drop(self) -> None:
        """Let go of a connection that broke; the next call opens another."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
        self._client = self._task = None


@asynccontextmanager
async def _opened(name: str, address: str, seconds: float) -> AsyncIterator[Any]:
    mcp = _package()
    if not address.startswith(("http://", "https://")):
        command, *words = shlex.split(address)
        async with mcp.Client(
            mcp.StdioServerParameters(command=command, args=words), read_timeout_seconds=seconds
        ) as c:
            yield c
        return
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    key = os.environ.get(f"HERD_MCP_{_NAME.sub('_', name).upper()}_KEY")
    async with create_mcp_http_client({"Authorization": f"Bearer {key}"} if key else None) as http:
        transport = streamable_http_client(address, http_client=http)
        async with mcp.Client(transport, read_timeout_seconds=seconds) as client:
            yield client


def _package() -> Any:
    try:
        import mcp
    except ImportError:
        raise ConfigError("mcp: needs the package `mcp`; run: pip install 'mcp>=2.3'") from None
    if not hasattr(mcp, "Client"):
        raise ConfigError("mcp: the package `mcp` is too old; run: pip install 'mcp>=2.3'")
    return mcp


class McpTool:
    """A tool of a server, by the server's name and its own."""

    def __init__(self, server: McpServer, tool: Mapping[str, Any]) -> None:
        self.server, self._name = server, tool["name"]
        name = _NAME.sub("_", f"{server.name}_{tool['name']}")[:64]
        schema = {"type": "object", **tool["schema"]}
        self.function = {"name": name, "description": tool["description"], "parameters": schema}

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """What the server answers.

        Raises:
            Failed: it fails, has vanished, hangs, or has changed its words.
        """
        return await self.server.call(self._name, arguments)

    async def close(self) -> None:
        """End the connection to the server."""
        await self.server.close()


def fingerprint(tool: Mapping[str, Any]) -> str:
    """The hash of what a server says of a tool."""
    return hashlib.sha256(json.dumps(tool, sort_keys=True).encode()).hexdigest()


def open_servers(
    addresses: Mapping[str, str], *, seconds: float, kept: Path, allow_changed: bool = False
) -> list[McpTool]:
    """The tools of these servers. What they say of them is compared with what it was when it was allowed (in `kept`).

    Raises:
        ConfigError: the package is missing, a server cannot be asked, or has changed what it says.
        DataError: the file of what was allowed is damaged.
    """
    _package()
    known = _read(kept)
    tools: list[McpTool] = []
    for name, address in addresses.items():
        server = McpServer(name, address, seconds=seconds)
        try:
            found = asyncio.run(_once(server))
        except Failed as error:
            raise ConfigError(f"mcp.{name}: {error}") from None
        server.allowed = {tool["name"]: fingerprint(tool) for tool in found}
        _check(name, server.allowed, known.get(f"{name} {address}"), allow_changed)
        known[f"{name} {address}"] = server.allowed
        tools += [McpTool(server, tool) for tool in found]
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps(known, indent=1, sort_keys=True))
    return tools


async def _once(server: McpServer) -> list[dict[str, Any]]:
    try:
        return await server.tools()
    finally:
        with contextlib.suppress(Exception):
            await server.close()


def _check(name: str, now: dict[str, str], before: dict[str, str] | None, allow_changed: bool) -> None:
    if before is None:
        say(f"mcp.{name}: {len(now)} tools are allowed as they are described now: {', '.join(now)}")
        return
    if gone := sorted(before.keys() - now.keys()):
        say(f"mcp.{name}: no longer there: {', '.join(gone)}")
    changed = sorted(tool for tool in now if now[tool] != before.get(tool))
    if not changed:
        return
    told = ", ".join(f"{tool} ({'changed' if tool in before else 'new'})" for tool in changed)
    if not allow_changed:
        raise ConfigError(
            f"mcp.{name}: its tools are described otherwise than when they were allowed: {told}. "
            "Look at what they say now, then allow them with toolbox.allow_changed=true"
        )
    say(f"mcp.{name}: allowed as they are described now: {told}")


def _read(kept: Path) -> dict[str, dict[str, str]]:
    if not kept.exists():
        return {}
    try:
        found = json.loads(kept.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{kept}: cannot be read ({error}); it holds which MCP tools were allowed") from None
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise DataError(f"{kept}: is not what was written; move it away to allow the MCP tools anew")
    return found


def _told(part: Any) -> str:
    text = getattr(part, "text", None)
    if isinstance(text, str):
        return text
    resource = getattr(getattr(part, "resource", None), "text", None)
    return resource if isinstance(resource, str) else f"[{part.type}: not text, left out]"


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:300]
