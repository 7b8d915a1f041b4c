"""Which tools a server runs, and the tools that these settings mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from herd.config import settings
from herd.environment import user_folder
from herd.errors import ConfigError
from herd.knowledge.index import Index
from herd.toolbox.calculator import Calculator
from herd.toolbox.errand import Errand
from herd.toolbox.functions import functions_of
from herd.toolbox.interpreter import Interpreter, Python
from herd.toolbox.library import Documents, WebSearch
from herd.toolbox.servers import McpTool, open_servers

NAMES = ("python", "calculator", "wolfram_alpha", "documents", "search")


@settings
class ToolSettings:
    """How the server's own tools are run."""

    calls: int = 8
    """Calls that one answer may make, all tools together; then it has to end."""
    seconds: float = 30.0
    """For one call, in seconds; it has failed then."""
    characters: int = 8000
    """Of one result, as the model is told it; the rest is cut, and that is said."""
    packages: list[str] | None = None
    """Installed packages that Python code may import (tools=[python])."""
    allow_weaker: bool = False
    """Run Python at the strongest level of the sandbox that there is, where `full` is not to be had."""
    allow_changed: bool = False
    """Allow MCP tools anew whose descriptions have changed since they were allowed."""
    allowed: Path | None = None
    """File that remembers which MCP tools were allowed; ~/.local/state/herd/mcp.json when not given."""
    search_key: str | None = None
    """Key for the search engine (Brave's); others here can read command lines."""

    def __post_init__(self):
        for name in ("calls", "seconds", "characters"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")


class AnyTool(Protocol):
    """What the server asks of a tool."""

    function: dict[str, Any]

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """What the model is told."""
        ...


def open_tools(
    names: Sequence[str],
    settings: ToolSettings,
    *,
    index: Index | None = None,
    search: str | None = None,
    mcp: Mapping[str, str] | None = None,
) -> list[AnyTool]:
    """The tools of these names: some of ours, the functions of Python files, and those of the MCP servers.

    Raises:
        ConfigError: a name is none, two tools have one name, or one needs what was not given.
        SandboxError: Python's sandbox is not to be had here at the level that is asked for.
    """
    tools: list[AnyTool] = []
    for name in names:
        match name:
            case "python":
                tools.append(Python(_interpreter(settings, settings.packages or [])))
            case "calculator" | "wolfram_alpha":
                tools.append(Calculator(_interpreter(settings, ["sympy"]), name=name))
            case "documents":
                if index is None:
                    raise ConfigError("tools: `documents` needs an index to search in; give documents=INDEX too")
                tools.append(Documents(index))
            case "search" if search is not None:
                tools.append(WebSearch(search, settings.search_key))
            case "search":
                if index is None:
                    raise ConfigError("tools: `search` needs search=http://host/search?q={query}, or documents=INDEX")
                tools.append(Documents(index, name="brave_search"))
            case file if file.endswith(".py"):
                tools += functions_of(Path(file))
            case _:
                raise ConfigError(f"tools: there is no `{name}`; expected {', '.join(NAMES)}, or a Python file")
    if mcp:
        tools += _of_servers(mcp, settings)
    known = [tool.function["name"] for tool in tools]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise ConfigError(f"tools: two tools are called {twice[0]}; leave one out, or rename it")
    return tools


def _of_servers(addresses: Mapping[str, str], settings: ToolSettings) -> list[McpTool]:
    folder = user_folder("XDG_STATE_HOME", ".local/state", "toolbox.allowed=FILE is needed for MCP tools")
    kept = settings.allowed or (folder and folder / "mcp.json")
    if kept is None:
        raise ConfigError("toolbox.allowed: needs a file that remembers which MCP tools were allowed")
    return open_servers(addresses, seconds=settings.seconds, kept=kept, allow_changed=settings.allow_changed)


def _interpreter(settings: ToolSettings, packages: list[str]) -> Interpreter:
    return Interpreter(allow_weaker=settings.allow_weaker, packages=packages, seconds=settings.seconds)
