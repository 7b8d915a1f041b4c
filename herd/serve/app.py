"""The server's application: its routes, and who may ask for what."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

from herd.infer.engine import Engine
from herd.knowledge.grounding import Library
from herd.serve import browsers, errors, moderations, tokens
from herd.serve.dialects import anthropic, chat, completions, responses
from herd.serve.documents import (
    REFUSALS,
    ErrorObject,
    Health,
    ModelList,
    ModelObject,
)
from herd.serve.effort import Effort
from herd.serve.files import FileStore
from herd.serve.files import routes as file_routes
from herd.serve.journal import Bookkeeping, Journal
from herd.serve.limits import Admission, Allowances, BodyLimit, Gate, Guesses, HostCheck, Keys, Limits
from herd.serve.metrics import Metrics
from herd.serve.models import Models
from herd.serve.services import Services
from herd.serve.store import Store
from herd.serve.tracing import Tracing
from herd.serve.trials import Trials
from herd.serve.turn import Budget, Guard, StaysOpen, Tool
from herd.serve.watch import Watch
from herd.serve.worker import Worker

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": chat.ChatRequest,
    "/v1/completions": completions.CompletionRequest,
    "/v1/responses": responses.ResponsesRequest,
    "/v1/messages": anthropic.MessagesRequest,
    "/v1/messages/count_tokens": anthropic.CountRequest,
    "/v1/embeddings": tokens.EmbeddingRequest,
    "/v1/moderations": moderations.ModerationRequest,
    "/tokenize": tokens.TokenizeRequest,
    "/detokenize": tokens.DetokenizeRequest,
}
KNOWN_FIELDS = {
    path: [field.alias or name for name, field in body.model_fields.items()] for path, body in _BODIES.items()
}
"""The fields that the body of a path may hold, for "did you mean"."""

_PAGE = Path(__file__).parent / "page.html"
_OPEN_PATHS = ("/", "/health", "/metrics", "/openapi.json")


class Server:
    """The engines at work, and whether new requests are still taken."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.models = Models(engines)
        self.worker = Worker(list(engines.values()))
        self.stopping = False

    def stop_taking(self) -> None:
        """Refuse new requests from now on; those in progress go on."""
        self.stopping = True

    def cut(self) -> None:
        """End every answer in progress; their clients are told."""
        self.worker.cancel_all()


def create_app(
    engines: Engine | Mapping[str, Engine],
    *,
    name: str = "herd",
    key: str | None = None,
    keys: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    journal: Journal | None = None,
    hosts: Sequence[str] | None = None,
    guards: Sequence[Guard] = (),
    watch: Watch | None = None,
    own_tools: Sequence[Tool] = (),
    budget: Budget | None = None,
    library: Library | None = None,
    from_library: bool = False,
    effort: Effort | None = None,
    files: FileStore | None = None,
    store: Store | None = None,
    origins: Sequence[str] = (),
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application around one engine, called `name`, or several by their names.

    `key`, or one of `keys` (by their owners' names), must come with every request but those for the page, `/health` and
    `/metrics`. With `hosts`, only requests to those host names are answered. The `watch` looks at every turn and
    answers `/v1/moderations`; then come the `guards`. `own_tools` are told to the model in conversations and run here,
    within a `budget`. Responses are kept in the `store`, where there is one. From the `library` answers are given where
    a request asks for it, or all that do not say, with `from_library`. `effort` says how many answers a request's word
    for it draws. `files` are kept for those who bring them. Pages of these `origins` may read answers.
    """
    server, kept = Server(engines if isinstance(engines, Mapping) else {name: engines}), files or FileStore()
    limits, journal = limits or Limits(), journal or Journal()
    allowances, metrics, trials = Allowances(limits), Metrics(server.models, watch), Trials()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.worker.start()
        async with _kept(kept):
            yield
        await asyncio.gather(*(tool.close() for tool in own_tools if isinstance(tool, StaysOpen)))
        await trials.close()
        await asyncio.to_thread(server.worker.stop)

    app = FastAPI(
        title="Herd", summary="OpenAI's API over Llama models.", lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(
        Gate,
        keys=Keys({**({"key": key} if key else {}), **(keys or {})}),
        allowances=allowances,
        guesses=Guesses(limits.wrong_keys_per_minute),
        is_stopping=lambda: server.stopping,
        open_paths=_OPEN_PATHS,
    )
    if hosts is not None:
        app.add_middleware(HostCheck, hosts=hosts)
    if origins:
        rules: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"], "expose_headers": browsers.EXPOSED}
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), **rules)
    app.add_middleware(browsers.Head)
    app.add_middleware(Bookkeeping, journal=journal, metrics=metrics, allowances=allowances, tracing=tracing)
    errors.install(app, KNOWN_FIELDS)
    services = Services(
        server.worker,
        limits,
        Admission(limits.max_waiting),
        trials,
        keep_text=journal.with_text,
        guards=(*((watch,) if watch is not None else ()), *guards),
        tools={tool.function["name"]: tool for tool in own_tools},
        budget=budget or Budget(),
        files=kept,
        library=library,
        from_library=from_library,
        effort=effort,
    )
    _add_routes(app, server, services, store, metrics, watch)
    return app


@asynccontextmanager
async def _kept(files: FileStore) -> AsyncIterator[None]:
    """Forget files that nobody uses, also while nobody asks, and all of them in the end."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(min(60.0, files.limits.seconds))
            await asyncio.to_thread(files.sweep)

    sweeper = asyncio.create_task(sweep())
    yield
    sweeper.cancel()
    await asyncio.to_thread(files.close)


def _add_routes(
    app: FastAPI, server: Server, services: Services, store: Store | None, metrics: Metrics, watch: Watch | None
) -> None:
    app.include_router(_open_routes(server, metrics))
    guarded = [Depends(HTTPBearer(auto_error=False))]  # for the document: the gate stands before the body
    app.include_router(_model_routes(server.models, _offered(services)), dependencies=guarded)
    for room in (chat, completions, anthropic, tokens):
        app.include_router(room.routes(services, server.models), dependencies=guarded)
    app.include_router(responses.routes(services, server.models, store), dependencies=guarded)
    app.include_router(moderations.routes(watch), dependencies=guarded)
    app.include_router(file_routes(services.files), dependencies=guarded)
    _document(app)


def _document(app: FastAPI) -> None:
    """Make the OpenAPI document say what is true here: a wrong body is answered with 400, never with 422."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _open_routes(server: Server, metrics: Metrics) -> APIRouter:
    """What is answered without a key: the page, and how the server is."""
    router = APIRouter()
    html = _PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _page_policy(html), "X-Content-Type-Options": "nosniff"}

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        alive = server.worker.is_alive
        status = "stopped" if not alive else "stopping" if server.stopping else "ok"
        state: dict[str, Any] = {"status": status, "running": 0, "waiting": 0}
        for model in server.models.bases:
            state["running"] += model.engine.num_running
            state["waiting"] += model.engine.num_waiting
        return JSONResponse(state, status_code=200 if status == "ok" else 503)

    @router.get("/metrics", response_class=Response, responses={501: {"model": ErrorObject}})
    async def prometheus() -> Response:
        text, kind = metrics.page()
        return Response(text, headers={"Content-Type": kind})

    return router


def _page_policy(html: str) -> str:
    """What the page may load: its own script and styles and this server's answers, nothing else.

    The script is named by its hash, so that no text a model writes can ever run as one.
    """
    script = html.partition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _offered(services: Services) -> dict[str, Any]:
    """What a page may offer beside the models."""
    documents = services.from_library if services.library is not None else None
    return {
        "tools": [*services.tools],
        "effort": services.effort.words if services.effort else [],
        "documents": documents,
    }


def _model_routes(models: Models, offered: Mapping[str, Any]) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/models", response_model=ModelList, responses=REFUSALS)
    async def listed(http: Request) -> Any:
        if not errors.speaks_anthropic(http.scope):
            return {"object": "list", "data": [model.describe() for model in models], "server": offered}
        data = [_as_anthropic(model.describe()) for model in models]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": False}
        return JSONResponse({"object": "list", "data": data} | ends)

    @router.get("/models/{model:path}", response_model=ModelObject, responses=REFUSALS)
    async def model(model: str, http: Request) -> Any:
        found = models.find(model).describe()
        return JSONResponse(_as_anthropic(found)) if errors.speaks_anthropic(http.scope) else found

    return router


def _as_anthropic(model: dict[str, Any]) -> dict[str, Any]:
    began = datetime.fromtimestamp(model["created"], UTC).isoformat()
    return model | {
        "type": "model",
        "display_name": model["id"],
        "created_at": began,
        "lifecycle": "active",
        "max_input_tokens": model["max_context"],
    }
