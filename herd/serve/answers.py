"""Answering: a request body becomes requests to an engine, and what comes back becomes one response or a stream."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from herd.errors import DataError, RequestError
from herd.infer.engine import Engine, Input
from herd.infer.request import Request as EngineRequest
from herd.serve.account import Account
from herd.serve.errors import ApiError, error_object
from herd.serve.limits import Limits
from herd.serve.models import Model
from herd.serve.replies import Gathered, Reply
from herd.serve.schemas import ChatRequest, CompletionRequest
from herd.serve.worker import Conveyor, Worker
from herd.tokenizer.chat import render

Body = ChatRequest | CompletionRequest

_log = logging.getLogger("herd.serve")


@dataclass(frozen=True)
class Desk:
    """What answering needs of the server."""

    worker: Worker
    limits: Limits
    keep_text: bool = False  # in the accounts


async def answer(desk: Desk, model: Model, http: Request, body: Body) -> Response:
    """Run one request body, streamed or whole. A client that goes away takes its request with it.

    Raises:
        ApiError: the queue is full, a prompt does not fit, or the answer takes too long.
    """
    inputs = [body.conversation] if isinstance(body, ChatRequest) else body.prompts
    account: Account = http.scope["herd.account"]
    account.model = model.name
    check_queue(model.engine, desk.limits, len(inputs) * body.num_drawn)
    conveyor = Conveyor()
    requests = await asyncio.to_thread(_requests, desk, model, body, inputs, conveyor)
    account.prompt_tokens = sum(len(request.prompt) for request in requests)
    if desk.keep_text:
        account.asked = inputs
    reply = Reply(model.engine.tokenizer, model.name, body, [request.prompt for request in requests])
    run = _Run(desk, model.engine, requests, conveyor, reply, account)
    watch = asyncio.create_task(_cancel_when_gone(http, desk.worker, model.engine, requests))
    if body.stream:
        events = run.events(watch, with_usage=body.with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return JSONResponse(await run.whole(watch))


class _Run:
    """The requests of one body on their way through the engine."""

    def __init__(
        self,
        desk: Desk,
        engine: Engine,
        requests: Sequence[EngineRequest],
        conveyor: Conveyor,
        reply: Reply,
        account: Account,
    ) -> None:
        self.requests, self.reply, self.account = requests, reply, account
        self.seconds = desk.limits.timeout_seconds
        self._pieces = conveyor.pieces(desk.worker, engine, requests, self.seconds)
        self._keep_text = desk.keep_text
        self.answers = [Gathered() for request in requests for _ in range(request.params.n)]

    async def whole(self, watch: asyncio.Task[None]) -> dict[str, Any]:
        """The response that is not streamed."""
        try:
            async for index, piece in self._pieces:
                self.account.first_piece()
                self.reply.take(index, piece, self.answers[index])
        except TimeoutError:
            raise ApiError(504, self._too_long(), code="timeout") from None
        finally:
            watch.cancel()
            self._settle()
        if any(answer.finish_reason == "cancelled" for answer in self.answers):
            raise ApiError(503, "The server is stopping; this answer was not finished.", code="stopping")
        self._echo()
        return self.reply.whole(self.answers, self.account.prompt_tokens)

    def _echo(self) -> None:
        """Put the prompts before the answers, where that was asked for."""
        if not self.reply.echoes:
            return
        for index, answer in enumerate(self.answers):
            request = self.requests[index // self.requests[0].params.n]
            scored = zip(request.prompt, request.prompt_logprobs, strict=False)  # no scores unless asked for
            answer.prepend(self.reply.echoes[index // request.params.n], scored)

    async def events(self, watch: asyncio.Task[None], *, with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events: a chunk for each piece, then the usage if asked for, then `[DONE]`."""
        try:
            for index in range(len(self.answers)):
                for chunk in self.reply.opening(index, index // self.requests[0].params.n):
                    yield _event(chunk)
            async for index, piece in self._pieces:
                self.account.first_piece()
                for chunk in self.reply.chunks(index, piece, self.answers[index]):
                    yield _event(chunk)
            if any(answer.finish_reason == "cancelled" for answer in self.answers):
                yield _event(error_object(503, "The server is stopping; this answer was cut.", code="stopping"))
                return
            if with_usage:
                generated = sum(answer.num_tokens for answer in self.answers)
                yield _event(self.reply.usage_chunk(self.account.prompt_tokens, generated))
            yield "data: [DONE]\n\n"
        except TimeoutError:
            self.account.error = "timeout"
            yield _event(error_object(504, self._too_long(), code="timeout"))
        except Exception as error:
            if not isinstance(error, RuntimeError):  # the worker has told of those
                _log.exception("a stream failed")
            self.account.error = "internal_error"
            yield _event(error_object(500, "The server failed on this request.", code="internal_error"))
        finally:
            watch.cancel()
            self._settle()

    def _settle(self) -> None:
        account = self.account
        account.completion_tokens = sum(answer.num_tokens for answer in self.answers)
        reasons = {answer.finish_reason or "gone" for answer in self.answers}
        account.finish = "gone" if "gone" in reasons else min(reasons)
        if self._keep_text:
            account.answered = [answer.text for answer in self.answers]

    def _too_long(self) -> str:
        return f"The answer was not finished after {self.seconds:g} s and was cancelled; ask for fewer tokens."


def check_queue(engine: Engine, limits: Limits, num_answers: int) -> None:
    """Refuse what would not get into the queue.

    Raises:
        ApiError: 400 where it never could, 429 where it can later.
    """
    waiting, most = engine.num_waiting, limits.max_waiting
    if num_answers > most:
        raise ApiError(400, f"{num_answers} answers in one request; at most {most} are taken.", code="too_many_answers")
    if waiting + num_answers > most:
        raise ApiError(429, f"{waiting} answers wait already, at most {most} may; try again soon.", code="queue_full")


def _requests(
    desk: Desk, model: Model, body: Body, inputs: Sequence[Input | list[int]], conveyor: Conveyor
) -> list[EngineRequest]:
    """Encode and check every prompt of a body before any of them runs."""
    engine, requests = model.engine, []
    for number, item in enumerate(inputs):
        try:
            prompt = _encode(engine, body, item)
            params = body.sampling(_max_tokens(engine, desk.limits, len(prompt), body.wanted_tokens))
            params = replace(params, adapter=model.adapter)
            requests.append(engine.request(prompt, params, conveyor.listener(number * params.n)))
        except (RequestError, DataError) as error:
            too_long = "context" in str(error)
            code = "context_length_exceeded" if too_long else None
            raise ApiError(400, str(error), param=_param(body, str(error)), code=code) from None
    return requests


def _encode(engine: Engine, body: Body, item: Input | list[int]) -> list[int]:
    if isinstance(body, ChatRequest) and body.usable_tools:
        return render(engine.tokenizer, item, generation_prompt=True, tools=body.usable_tools).tokens
    return item if _is_ids(item) else engine.encode(item)


def _param(body: Body, message: str) -> str:
    """The field that a message of the engine is about: it begins with a setting's name, or is about the prompt."""
    form = message.replace(":", " ").split(" ", 1)[0]
    if form in ("json_schema", "regex", "grammar", "choice"):
        if isinstance(body, ChatRequest) and body.structured_outputs is None:
            return "tools" if body.must_call else "response_format"
        return "structured_outputs"
    if form in type(body).model_fields:
        return form
    return "messages" if isinstance(body, ChatRequest) else "prompt"


def _max_tokens(engine: Engine, limits: Limits, prompt_tokens: int, wanted: int | None) -> int:
    """The longest answer: what the request asks for if it fits, else what fits within the server's own limit."""
    room = engine.max_context - prompt_tokens
    if wanted is None:
        return max(min(room, limits.max_tokens), 1)
    if 0 < room < wanted:
        raise RequestError(
            f"The context is {engine.max_context} tokens; the prompt has {prompt_tokens} and the "
            f"answer was to have up to {wanted}. Ask for at most {room}, or leave the limit out."
        )
    return wanted


def _is_ids(item: object) -> bool:
    return isinstance(item, list) and (not item or isinstance(item[0], int))


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _cancel_when_gone(http: Request, worker: Worker, engine: Engine, requests: Sequence[EngineRequest]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    for request in requests:
        worker.cancel(engine, request)
