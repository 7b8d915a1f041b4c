"""Serve models: a chat page, and an OpenAI-compatible API for the clients you have.

Several paths serve several models at once: `herd serve runs/a runs/b`. It listens on this machine only unless `host`
says otherwise. Ctrl-C stops: answers in progress may end first, a second Ctrl-C cuts them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from herd.config import settings
from herd.errors import ConfigError
from herd.infer.settings import EngineSettings
from herd.knowledge.grounding import Library, index_beside
from herd.knowledge.index import Index
from herd.log import say
from herd.safety.opened import open_any_guard
from herd.serve.app import create_app
from herd.serve.codes import CodeWatch
from herd.serve.effort import Effort
from herd.serve.files import FileStore
from herd.serve.journal import Journal
from herd.serve.judges import open_judge
from herd.serve.keys import check_keys, read_keys
from herd.serve.memory import use_one_pool
from herd.serve.server import LOOPBACK, announce, begin_to_listen, bound, open_engines, serve, settle
from herd.serve.settings import ServeLimits, ServeLog
from herd.serve.store import Store
from herd.serve.tracing import Tracing
from herd.serve.turn import Budget
from herd.serve.watch import Watch
from herd.toolbox.settings import ToolSettings, open_tools

KEY_VARIABLE = "HERD_KEY"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


@settings
class ServeSettings:
    """Serve one model, or several, until stopped with Ctrl-C."""

    path: list[Path]
    """Checkpoints or run folders, one or several."""
    name: list[str] | None = None
    """Model ids for clients, in the order of the paths; the folders' names when not given."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in (give a key then)."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    key: str | None = None
    """Key that clients must send; the variable HERD_KEY when not given (others here can read command lines)."""
    keys: Path | None = None
    """YAML file of `name: key`, for several clients; the names go into the log."""
    device: str = "cpu"
    """Where the models run: cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number type to compute in; default: the checkpoint's own if this machine computes in it well."""
    quantize: Literal["int8", "int4", "fp8"] | None = None
    """Round the weights on loading; see `herd quantize` for a smaller copy on disk."""
    adapters: dict[str, Path] | None = None
    """LoRA adapters (PEFT folders) of the first model, by the model ids that clients give."""
    guard: list[Path] | None = None
    """Guards (`herd guard train`, or Llama Guards): they judge what is asked, answered, brought by tools."""
    shield: Literal["warn", "block"] | None = None
    """Code Shield: scan the code that is answered or handed to tools; tell what is insecure, or end the answer too."""
    store: Path | None = None
    """SQLite file that keeps responses for `previous_response_id`; nothing is kept when not given."""
    origins: list[str] | None = None
    """Origins (https://page.example) whose pages may read answers in a browser; * for any; none when not given."""
    tools: list[str] | None = None
    """Tools that run here: python, calculator, wolfram_alpha, documents, search, and Python files (their functions)."""
    mcp: dict[str, str] | None = None
    """MCP servers whose tools run here, by names of yours: a command, or an address (http://host/mcp)."""
    documents: Path | None = None
    """Index of your own files (`herd index`): answers are given from it and cite it, where no tool looks into it."""
    beside: bool = True
    """Look into the index that lies beside a demo's model, and tell what it holds beside the model's own words."""
    search: str | None = None
    """Search engine for the tool `search`, answering in JSON: http://host/search?format=json&q={query}."""
    effort: dict[str, int] | None = None
    """Answers that a vote chooses among, by a request's word: effort.high=8. Without it such words have no effect."""
    vote: Literal["number", "mathematics", "words"] = "number"
    """What makes two answers of such a vote one: their last number, final expression, or words."""
    choose: Literal["vote", "best", "weighted", "tree"] = "vote"
    """Of such answers what most say, the best by `judge`, a vote that it weighs; or a tree of steps that it judges."""
    judge: Path | None = None
    """Reward model, or Python file with `score(messages, answer)`, for `choose`."""
    engine: EngineSettings = EngineSettings()
    """How each model is run."""
    toolbox: ToolSettings = ToolSettings()
    """How the tools are run."""
    limits: ServeLimits = ServeLimits()
    """What the server takes on."""
    log: ServeLog = ServeLog()
    """What it writes down."""

    def __post_init__(self):
        if not self.path:
            raise ValueError("path must name at least one model")
        if self.name and len(self.name) != len(self.path):
            raise ValueError(f"{len(self.name)} names for {len(self.path)} paths; give each its own, or none")
        for name in (*(self.name or ()), *(self.adapters or ())):
            if not name.strip() or not name.isprintable():
                raise ValueError(f"{name!r} is no name that clients could give; take letters and digits")
        if self.log.verdicts is not None and not self.guard and not self.shield:
            raise ValueError("log.verdicts: there are verdicts only with guard=FOLDER or shield=warn")
        for origin in self.origins or ():
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"origins: {origin!r} is none; write https://page.example, with a port if it has one")
        for word, count in (self.effort or {}).items():
            if not 1 <= count <= 128:
                raise ValueError(f"effort.{word}: expected 1 to 128 answers")
        if (self.choose == "vote") != (self.judge is None):
            raise ValueError("choose=best, weighted and tree need judge=, and a plain vote has no use for it")
        if self.judge is not None and not self.effort:
            raise ValueError("judge: say for which words more answers are drawn, effort.high=8")
        if not 0 <= self.port <= 65535:
            raise ValueError("port must be from 0 to 65535")


def run(settings: ServeSettings) -> None:
    """Open the models, listen, and serve until interrupted."""
    use_one_pool()
    paths = _named(settings)
    keys = read_keys(settings.keys) if settings.keys else {}
    key = settings.key or os.environ.get(KEY_VARIABLE) or None
    check_keys({KEY_VARIABLE if settings.key is None else "key": key} if key else {})
    check_keys(keys)
    store = Store(settings.store) if settings.store is not None else None
    guards = [open_any_guard(folder) for folder in settings.guard or ()]
    watch = Watch(guards, settings.log.verdicts) if guards or settings.shield else None
    shields = [CodeWatch(watch, settings.shield)] if watch is not None and settings.shield else []
    tracing = Tracing() if settings.log.traces else None
    index, library = _library(settings)
    tools = open_tools(settings.tools or (), settings.toolbox, index=index, search=settings.search, mcp=settings.mcp)
    looks = not {"documents", "search"}.isdisjoint(settings.tools or ())
    judge = open_judge(settings.judge) if settings.judge is not None else None
    listener = bound(settings.host, settings.port)
    engines = open_engines(paths, settings.engine, settings.device, dtype=settings.dtype, quantize=settings.quantize)
    for name, folder in (settings.adapters or {}).items():
        next(iter(engines.values())).add_adapter(name, folder)
    is_open = not (key or keys)
    app = create_app(
        engines,
        key=key,
        keys=keys,
        limits=settings.limits.for_app(),
        journal=Journal(settings.log.form, with_text=settings.log.with_text),
        watch=watch,
        guards=shields,
        own_tools=tools,
        budget=Budget(settings.toolbox.calls, settings.toolbox.seconds, settings.toolbox.characters),
        library=library,
        from_library=library is not None and not looks,
        effort=Effort(settings.effort, settings.vote, settings.choose, judge) if settings.effort else None,
        files=FileStore(settings.limits.for_files()),
        store=store,
        origins=settings.origins or (),
        tracing=tracing,
        hosts=LOOPBACK if is_open and settings.host in LOOPBACK else None,
    )
    settle()
    begin_to_listen(listener, settings.host, settings.port)  # who comes before the loop's first turn waits, unrefused
    if tools:
        say(f"tools that run here: {', '.join(tool.function['name'] for tool in tools)}")
    announce(engines, settings.host, listener.getsockname()[1], is_open=is_open)
    serve(app, listener, settings.limits.door(), settings.limits.drain_seconds)


def _library(settings: ServeSettings) -> tuple[Index | None, Library | None]:
    """The index that is named, or that lies beside a demo's model: what it holds is told beside the model's words."""
    if settings.documents is not None:
        index = Index(settings.documents)
        return index, Library(index)
    place = index_beside(settings.path[0]) if settings.beside else None
    if place is None:
        return None, None
    say(f"documents: what {place} holds is told beside the model's own words (beside=false: not)")
    index = Index(place)
    return index, Library(index, beside=True)


def _named(settings: ServeSettings) -> dict[str, Path]:
    names = settings.name or [path.resolve().name for path in settings.path]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two models are called {twice[0]}; tell them apart with name=[...]")
    return dict(zip(names, settings.path, strict=True))
