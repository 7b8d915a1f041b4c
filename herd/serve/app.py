"""The server's routes: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` and the chat page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.errors import DataError, RequestError
from herd.infer.engine import Engine, Input
from herd.infer.request import Request as EngineRequest
from herd.serve import errors
from herd.serve.errors import ApiError, error_object
from herd.serve.replies import Gathered, Reply
from herd.serve.schemas import ChatRequest, CompletionRequest
from herd.serve.worker import Conveyor, Worker

_PAGE = Path(__file__).parent / "page.html"
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server takes on."""

    max_waiting: int = 256  # answers in the queue; more are refused with 429
    max_body_bytes: int = 10_000_000  # larger bodies are refused with 413
    max_tokens: int = 2048  # longest answer where the request does not say


@dataclass(frozen=True)
class Service:
    """The one model that is served."""

    engine: Engine
    worker: Worker
    name: str
    limits: Limits
    created: int


def create_app(engine: Engine, *, name: str, key: str | None = None, limits: Limits | None = None) -> FastAPI:
    """The application around an engine; `key`, where given, must come with every request under /v1."""
    service = Service(engine, Worker(engine), name, limits or Limits(), int(time.time()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(title="Herd", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=service.limits.max_body_bytes)
    errors.install(app)
    app.include_router(_page_routes(service))
    app.include_router(_api_routes(service), dependencies=[Depends(partial(_check_key, key))])
    return app


def _page_routes(service: Service) -> APIRouter:
    router = APIRouter()
    html = _PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _page_policy(html)}

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @router.get("/health")
    async def health() -> JSONResponse:
        alive = service.worker.is_alive
        state = {"status": "ok" if alive else "stopped", "running": service.engine.num_running}
        state["waiting"] = service.engine.num_waiting
        return JSONResponse(state, status_code=200 if alive else 503)

    return router


def _page_policy(html: str) -> str:
    """What the page may load: its own script and styles and this server's answers, nothing else.

    The script is named by its hash, so that no text a model writes can ever run as one.
    """
    script = html.partition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _api_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_object(service)]}

    @router.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        _check_model(service, model)
        return _model_object(service)

    @router.post("/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        _check_model(service, body.model)
        if not service.engine.speaks_chat:
            raise ApiError(
                400,
                f"`{service.name}` is a base model, never trained on conversations; use /v1/completions.",
                code="no_chat",
            )
        return await _answer(service, http, body, [body.conversation])

    @router.post("/completions", response_model=None)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        _check_model(service, body.model)
        return await _answer(service, http, body, body.prompts)

    return router


def _model_object(service: Service) -> dict[str, Any]:
    engine = service.engine
    facts = {"max_context": engine.max_context, "chat": engine.speaks_chat}
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "herd"} | facts


# ---- answering -------------------------------------------------------------------------------------------------------


async def _answer(
    service: Service, http: Request, body: ChatRequest | CompletionRequest, inputs: Sequence[Input | list[int]]
) -> Response:
    """Run one request body, streamed or whole. A client that goes away takes its request with it."""
    _check_queue(service, len(inputs) * (body.n or 1))
    conveyor = Conveyor()
    requests = await asyncio.to_thread(_requests, service, body, inputs, conveyor)
    chat = isinstance(body, ChatRequest)
    reply = Reply(service.engine.tokenizer, service.name, chat=chat, logprobs=body.wanted_logprobs is not None)
    watch = asyncio.create_task(_cancel_when_gone(http, service.worker, requests))
    if body.stream:
        events = _events(service, conveyor, requests, reply, watch, body.with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    try:
        answers = [Gathered() for request in requests for _ in request.answers]
        async for index, piece in conveyor.pieces(service.worker, requests):
            answers[index].add(piece)
    finally:
        watch.cancel()
    return JSONResponse(reply.whole(answers, sum(len(request.prompt) for request in requests)))


def _requests(
    service: Service,
    body: ChatRequest | CompletionRequest,
    inputs: Sequence[Input | list[int]],
    conveyor: Conveyor,
) -> list[EngineRequest]:
    """Encode and check every prompt of a body before any of them runs."""
    engine, requests = service.engine, []
    param = "messages" if isinstance(body, ChatRequest) else "prompt"
    for number, item in enumerate(inputs):
        try:
            prompt = item if _is_ids(item) else engine.encode(item)
            params = body.sampling(_max_tokens(service, len(prompt), body.wanted_tokens), body.wanted_logprobs)
            requests.append(engine.request(prompt, params, conveyor.listener(number * params.n)))
        except (RequestError, DataError) as error:
            too_long = "context" in str(error)
            raise ApiError(400, str(error), param=param, code="context_length_exceeded" if too_long else None) from None
    return requests


def _max_tokens(service: Service, prompt_tokens: int, wanted: int | None) -> int:
    """The longest answer: what the request asks for if it fits, else what fits within the server's own limit."""
    room = service.engine.max_context - prompt_tokens
    if wanted is None:
        return max(min(room, service.limits.max_tokens), 1)
    if 0 < room < wanted:
        raise RequestError(
            f"The context is {service.engine.max_context} tokens; the prompt has {prompt_tokens} and the "
            f"answer was to have up to {wanted}. Ask for at most {room}, or leave the limit out."
        )
    return wanted


def _is_ids(item: object) -> bool:
    return isinstance(item, list) and (not item or isinstance(item[0], int))


async def _events(
    service: Service,
    conveyor: Conveyor,
    requests: Sequence[EngineRequest],
    reply: Reply,
    watch: asyncio.Task[None],
    with_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece, then the usage if asked for, then `[DONE]`."""
    num_answers = sum(len(request.answers) for request in requests)
    num_tokens, offsets = 0, [0] * num_answers
    try:
        if reply.chat:
            for index in range(num_answers):
                yield _event(reply.opening(index))
        async for index, piece in conveyor.pieces(service.worker, requests):
            num_tokens += len(piece.tokens)
            if piece.text or piece.finish_reason or (reply.logprobs and piece.logprobs):
                yield _event(reply.chunk(index, piece, offsets[index]))
                offsets[index] += len(piece.text)
        if with_usage:
            yield _event(reply.usage_chunk(sum(len(request.prompt) for request in requests), num_tokens))
        yield "data: [DONE]\n\n"
    except RuntimeError:
        yield _event(error_object(500, "The engine failed on this request.", code="internal_error"))
    finally:
        watch.cancel()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _cancel_when_gone(http: Request, worker: Worker, requests: Sequence[EngineRequest]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    for request in requests:
        worker.cancel(request)


# ---- refusals --------------------------------------------------------------------------------------------------------


async def _check_key(key: str | None, http: Request) -> None:
    given = http.headers.get("authorization", "")
    if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise ApiError(401, "A valid key is required: Authorization: Bearer KEY.", code="invalid_api_key")


def _check_model(service: Service, wanted: str | None) -> None:
    if wanted is not None and wanted != service.name:
        raise ApiError(
            404,
            f"There is no model `{wanted}` here; `{service.name}` is served.",
            param="model",
            code="model_not_found",
        )


def _check_queue(service: Service, num_answers: int) -> None:
    waiting, most = service.engine.num_waiting, service.limits.max_waiting
    if num_answers > most:
        raise ApiError(400, f"{num_answers} answers in one request; at most {most} are taken.", code="too_many_answers")
    if waiting + num_answers > most:
        raise ApiError(429, f"{waiting} answers wait already, at most {most} may; try again soon.", code="queue_full")


class BodyLimit:
    """Refuses bodies that are too large, whether they say so first or only turn out to be."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"The body is larger than {self.max_bytes:,} bytes."
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await JSONResponse(error_object(413, message), status_code=413)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            part = await receive()
            received += len(part.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, message)
            return part

        await self.app(scope, counted, send)
