"""Answering: a request body becomes requests to an engine, and what comes back becomes one response or a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from herd.errors import DataError, RequestError
from herd.infer.engine import Engine
from herd.infer.inputs import Input
from herd.infer.request import Piece
from herd.infer.request import Request as EngineRequest
from herd.serve.account import Account
from herd.serve.errors import ApiError, error_object
from herd.serve.limits import Limits, Places
from herd.serve.models import Model
from herd.serve.replies import Dialect, Gathered, Reply
from herd.serve.turn import Turn
from herd.serve.worker import Conveyor, Worker
from herd.tokenizer.chat import render

_log = logging.getLogger("herd.serve")
_READING_SECONDS = 5.0  # to read the end of a stream, after the time for its answer


@dataclass(frozen=True)
class Desk:
    """What answering needs of the server."""

    worker: Worker
    limits: Limits
    places: Places
    keep_text: bool = False  # in the accounts


async def answer(desk: Desk, model: Model, http: Request, body: Dialect) -> Response:
    """Run one request body, streamed or whole. A client that goes away takes its request with it.

    Raises:
        ApiError: the queue is full, a prompt does not fit, or the answer takes too long.
    """
    account: Account = http.scope["herd.account"]
    account.model = model.name
    turn = await asyncio.to_thread(_turn, body)
    desk.places.take(model.engine, turn.num_places)
    try:
        conveyor = Conveyor()
        requests = await asyncio.to_thread(_requests, desk, model, body, turn, conveyor, account.owner)
        account.prompt_tokens = sum(len(request.prompt) for request in requests)
        if desk.keep_text:
            account.asked = turn.inputs
        reply = body.reply(model.engine.tokenizer, model.name, turn, [request.prompt for request in requests])
        run = _Run(desk, model.engine, requests, conveyor, body, reply, account)
    except BaseException:
        desk.places.give_back(model.engine, turn.num_places)
        raise
    run.watch = asyncio.create_task(run.cancel_when_gone(http))
    if turn.stream:
        return EventStream(run)
    return JSONResponse(await run.whole())


class _Run:
    """The requests of one body on their way through the engine."""

    watch: asyncio.Task[None]  # ends by itself, when the response is out or the client is gone

    def __init__(
        self,
        desk: Desk,
        engine: Engine,
        requests: Sequence[EngineRequest],
        conveyor: Conveyor,
        body: Dialect,
        reply: Reply,
        account: Account,
    ) -> None:
        self.body = body
        self.requests, self.reply, self.account = requests, reply, account
        self.seconds = desk.limits.timeout_seconds
        self._desk, self._engine = desk, engine
        self._pieces = conveyor.pieces(desk.worker, engine, requests, self.seconds)
        self._gone = False
        self.answers = [Gathered() for request in requests for _ in range(request.params.n)]

    async def cancel_when_gone(self, http: Request) -> None:
        """Watch the client's side until it closes, or until the response is out."""
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        for request in self.requests:
            self._desk.worker.cancel(self._engine, request)

    async def whole(self) -> dict[str, Any]:
        """The response that is not streamed."""
        try:
            async with aclosing(self._pieces) as batches:
                async for pieces in batches:
                    self.account.first_piece()
                    for index, piece in pieces:
                        self.reply.take(index, piece, self.answers[index])
        except TimeoutError:
            raise ApiError(504, self._too_long(), code="timeout") from None
        except RequestError as error:
            raise ApiError(400, str(error), param=self.body.field_of(str(error))) from None
        finally:
            self._settle()
        if any(answer.finish_reason == "cancelled" for answer in self.answers):
            if self._gone:
                raise ApiError(499, "The client closed the connection.", code="gone")
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

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, as the dialect writes them."""
        written = self.reply.written
        try:
            for index in range(len(self.answers)):
                for chunk in self.reply.opening(index, index // self.requests[0].params.n):
                    yield written(chunk)
            async with aclosing(self._pieces) as batches:
                async for pieces in batches:
                    self.account.first_piece()
                    if text := self._chunks(pieces):
                        yield text
            if any(answer.finish_reason == "cancelled" for answer in self.answers):
                yield written(error_object(503, "The server is stopping; this answer was cut.", code="stopping"))
                return
            for event in self.reply.closing(self.answers, self.account.prompt_tokens):
                yield written(event)
            yield self.reply.end()
        except TimeoutError:
            self.account.error = "timeout"
            yield written(error_object(504, self._too_long(), code="timeout"))
        except RequestError as error:
            self.account.error = "invalid_request_error"
            yield written(error_object(400, str(error), self.body.field_of(str(error))))
        except Exception as error:
            if not isinstance(error, RuntimeError):  # the worker has told of those
                _log.exception("a stream failed")
            self.account.error = "internal_error"
            yield written(error_object(500, "The server failed on this request.", code="internal_error"))
        finally:
            self._settle()

    def _chunks(self, pieces: Sequence[tuple[int, Piece]]) -> str:
        """What is written of some pieces; nothing to a client who is gone."""
        chunks = [c for index, piece in pieces for c in self.reply.chunks(index, piece, self.answers[index])]
        return "" if self._gone else "".join(map(self.reply.written, chunks))

    def _settle(self) -> None:
        """Close the account; what was taken on is over."""
        self._desk.places.give_back(self._engine, self.reply.turn.num_places)
        account = self.account
        account.completion_tokens = sum(answer.num_tokens for answer in self.answers)
        reasons = {answer.finish_reason or "gone" for answer in self.answers}
        account.finish = "gone" if "gone" in reasons or (self._gone and "cancelled" in reasons) else min(reasons)
        if self._desk.keep_text:
            account.answered = [answer.text for answer in self.answers]

    def _too_long(self) -> str:
        return f"The answer was not finished after {self.seconds:g} s and was cancelled; ask for fewer tokens."


class EventStream(StreamingResponse):
    """The response that is streamed. A client who does not read is waited for no longer than for an answer."""

    def __init__(self, run: _Run) -> None:
        super().__init__(run.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The events are closed here and not by the collector, whatever happens."""
        try:
            async with asyncio.timeout(self._run.seconds + _READING_SECONDS), aclosing(self.body_iterator):
                await self.stream_response(send)
        except TimeoutError:
            self._run.account.error = "not_read"  # uvicorn closes a connection whose response was left unfinished


def _turn(body: Dialect) -> Turn:
    try:
        return body.turn()
    except RequestError as error:
        raise ApiError(400, str(error), param=body.field_of(str(error))) from None


def _requests(
    desk: Desk, model: Model, body: Dialect, turn: Turn, conveyor: Conveyor, owner: str | None
) -> list[EngineRequest]:
    """Encode and check every prompt of a body before any of them runs."""
    engine, requests = model.engine, []
    owner = None if desk.limits.share_prefixes else owner
    for number, item in enumerate(turn.inputs):
        try:
            prompt = _encode(engine, turn, item)
            max_tokens = _max_tokens(engine, desk.limits, len(prompt), turn.max_tokens)
            params = replace(turn.params, max_tokens=max_tokens, adapter=model.adapter)
            requests.append(engine.request(prompt, params, conveyor.listener(number * params.n), owner=owner))
        except (RequestError, DataError) as error:
            too_long = "context" in str(error)
            code = "context_length_exceeded" if too_long else None
            raise ApiError(400, str(error), param=body.field_of(str(error)), code=code) from None
    return requests


def _encode(engine: Engine, turn: Turn, item: Input | list[int]) -> list[int]:
    if turn.tools:
        return render(engine.tokenizer, item, generation_prompt=True, tools=turn.tools).tokens
    return item if _is_ids(item) else engine.encode(item)


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
