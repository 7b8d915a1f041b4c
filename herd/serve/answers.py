"""Answering: a request body becomes requests to an engine, and what comes back becomes one response or a stream."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeGuard, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

from herd.errors import DataError, RequestError
from herd.infer.engine import Engine
from herd.infer.inputs import Input
from herd.infer.request import Piece
from herd.infer.request import Request as EngineRequest
from herd.serve.account import Account
from herd.serve.errors import ApiError
from herd.serve.limits import Limits, Places
from herd.serve.memory import give_back
from herd.serve.models import Model
from herd.serve.prompts import conversation_prompt
from herd.serve.replies import Counts, Dialect, Reply, num_tokens, written
from herd.serve.speech import Speech
from herd.serve.tools import CallReader, Part
from herd.serve.trials import Trials
from herd.serve.turn import MAX_ROUNDS, Guard, Refused, Tool, Turn
from herd.serve.worker import Conveyor, Worker
from herd.tokenizer.chat import tells_tools
from herd.tokenizer.specials import PYTHON_TAG
from herd.types import Message, ToolCall

_log = logging.getLogger("herd.serve")
_FEW_SCORES = 200  # tokens with their likeliest others: what is written of more is written beside the event loop
_READING_SECONDS = 5.0  # to read the end of a stream, after the time for its answer
_CALL_TOKENS = (PYTHON_TAG, "<tool_call>")  # special tokens that open calls


@dataclass(frozen=True)
class Desk:
    """What answering needs of the server."""

    worker: Worker
    limits: Limits
    places: Places
    trials: Trials
    keep_text: bool = False  # in the accounts
    guards: Sequence[Guard] = ()
    tools: Mapping[str, Tool] = field(default_factory=dict)  # the server's own, by name


async def answer(desk: Desk, model: Model, http: Request, body: Dialect) -> Response:
    """Run one request body, streamed or whole. A client that goes away takes its request with it.

    Raises:
        ApiError: the queue is full, a prompt does not fit, or the answer takes too long.
    """
    account: Account = http.scope["herd.account"]
    account.model = model.name
    turn, account.unheeded = await asyncio.to_thread(lambda: (_turn(body), body.unheeded(model)))
    turn = replace(_with_own_tools(turn, desk.tools), owner=account.owner, request=account.id)
    refusal: Refused | None = None
    if turn.tools and not await asyncio.to_thread(tells_tools, model.engine.tokenizer):
        account.unheeded = [*account.unheeded, "tools"]
    try:
        if desk.guards:
            turn = await _guarded(desk, model.engine, turn)
    except Refused as refused:
        refusal = refused
    desk.places.take(model.engine, turn.num_places)
    gone = asyncio.create_task(_gone(http))
    try:
        conveyor = Conveyor()
        requests = await desk.trials.in_turn(
            model.engine,
            turn.params,
            gone,
            lambda: _requests(desk, model, body, turn, conveyor, account.owner),
        )
        account.prompt_tokens = sum(len(request.prompt) for request in requests)
        if desk.keep_text:
            account.asked = turn.inputs
        reply = body.reply(model, turn, [request.prompt for request in requests])
        run = _Run(desk, model, requests, conveyor, body, reply, account)
        if refusal is not None:
            run.refuse(refusal)
    except BaseException as error:
        desk.places.give_back(model.engine, turn.num_places)
        gone.cancel()
        if isinstance(error, RequestError):
            raise ApiError(400, str(error), param=body.field_of(str(error))) from None
        raise
    run.watch = asyncio.create_task(run.cancel_when_gone(gone))
    if turn.stream:
        return EventStream(run)
    return await run.whole()


class _Run:
    """The requests of one body on their way through the engine."""

    watch: asyncio.Task[None]  # ends by itself, when the response is out or the client is gone

    def __init__(
        self,
        desk: Desk,
        model: Model,
        requests: Sequence[EngineRequest],
        conveyor: Conveyor,
        body: Dialect,
        reply: Reply,
        account: Account,
    ) -> None:
        self.body = body
        self.requests, self.reply, self.account = list(requests), reply, account
        self.seconds = desk.limits.timeout_seconds
        self._desk, self._engine, self._conveyor = desk, model.engine, conveyor
        self._until = asyncio.get_running_loop().time() + self.seconds
        self._gone = self._is_refused = False
        self._n = requests[0].params.n
        self._special = model.engine.tokenizer.special
        self.answers = [self._speech() for request in requests for _ in range(request.params.n)]
        self._talks: dict[int, list[Message]] = {}  # what was said, of answers that used the server's own tools
        self._rounds: dict[int, int] = {}

    def refuse(self, refused: Refused) -> None:
        """A guard lets nothing be generated."""
        self._is_refused = True
        for speech in self.answers:
            speech.refuse(refused)

    def _speech(self) -> Speech:
        turn = self.reply.turn
        filters = [guard.after(turn) for guard in self._desk.guards]
        tags = [self._special[name] for name in _CALL_TOKENS if name in self._special]
        return Speech(self._reader(), filters, tags=tags, own=_own_names(turn, self._desk.tools))

    def _reader(self) -> CallReader | None:
        turn = self.reply.turn
        if not turn.tools:
            return None
        names = [tool["function"]["name"] for tool in turn.tools]
        return CallReader(
            names, eager=turn.stream, one_call=turn.one_call, must_call=turn.must_call, typed=turn.typed_calls
        )

    async def cancel_when_gone(self, gone: asyncio.Task[None]) -> None:
        """Wait until the client's side closes, or until the response is out."""
        await gone
        self._gone = True
        for request in self.requests:
            self._desk.worker.cancel(self._engine, request)

    async def _steps(self) -> AsyncGenerator[list[tuple[int, list[Part], Piece]]]:
        """What the client is to be told, piece by piece; an empty list where nothing came for a while."""
        if self._is_refused:
            yield [(index, [], Piece(index, "", (), (), "content_filter")) for index in range(len(self.answers))]
            return
        quiet = self._desk.limits.keep_alive_seconds
        batches = self._conveyor.pieces(self._desk.worker, self._engine, self.requests, self._until, quiet)
        async with aclosing(batches):
            async for pieces in batches:
                told = []
                for index, piece in pieces:
                    speech = self.answers[index]
                    if speech.finish_reason is None or piece.finish_reason == "content_filter":
                        judged = self._desk.guards and piece.text + (piece.finish_reason or "")
                        parts = await asyncio.to_thread(speech.take, piece) if judged else speech.take(piece)
                        if piece.finish_reason != speech.finish_reason:  # as the client sees it
                            piece = replace(piece, finish_reason=speech.finish_reason)
                        told.append((index, parts, piece))
                if pieces:
                    self.account.first_piece()
                yield told
                for index, piece in pieces:
                    if self.answers[index].own_calls and piece.finish_reason and not self.answers[index].finish_reason:
                        await self._use_tools(index)
                if self._desk.guards:
                    self._cancel_what_is_refused()

    async def _use_tools(self, index: int) -> None:
        """Run the server's own tools that an answer calls, and let it go on."""
        speech, turn = self.answers[index], self.reply.turn
        first = self.requests[index // self._n]
        talk = self._talks.setdefault(index, cast("list[Message]", list(turn.inputs[index // self._n])))
        calls = [ToolCall(name=call.name, arguments=json.loads(call.arguments)) for call in speech.own_calls]
        talk.append(Message(role="assistant", content=speech.round_text, tool_calls=calls))
        async with asyncio.timeout_at(self._until):
            results = await asyncio.gather(*(self._desk.tools[c["name"]].call(c["arguments"]) for c in calls))
        talk += [Message(role="ipython", content=result) for result in results]
        try:
            for guard in self._desk.guards:
                await guard.before(replace(turn, inputs=[talk]))
        except Refused as refused:
            speech.refuse(refused)
            self._conveyor.say(index, Piece(index, "", (), (), "content_filter"))
            return
        speech.next_round(self._reader())
        self._rounds[index] = self._rounds.get(index, 0) + 1
        left = first.params.max_tokens - speech.num_tokens
        if self._rounds[index] > MAX_ROUNDS or left < 1:
            self._conveyor.say(index, Piece(index, "", (), (), "length"))
            return
        prompt = await asyncio.to_thread(_encode, self._engine, turn, talk)
        room = self._engine.max_context - len(prompt)
        params = replace(first.params, n=1, best_of=None, max_tokens=max(min(left, room), 1), prompt_logprobs=None)
        owner = None if self._desk.limits.share_prefixes else self.account.owner
        listener = self._conveyor.listener(index)
        request = await asyncio.to_thread(self._engine.request, prompt, params, listener, owner=owner)
        self.account.prompt_tokens += len(prompt)
        self.requests.append(request)
        self._conveyor.go_on(request)

    def _cancel_what_is_refused(self) -> None:
        for number, request in enumerate(self.requests):
            mine = self.answers[number * self._n : (number + 1) * self._n]
            if mine and all(speech.refusal is not None for speech in mine) and not request.finished:
                self._desk.worker.cancel(self._engine, request)

    async def whole(self) -> Response:
        """The response that is not streamed."""
        try:
            async with aclosing(self._steps()) as steps:
                async for _ in steps:
                    pass
        except TimeoutError:
            raise ApiError(504, self._too_long(), code="timeout") from None
        except RequestError as error:
            raise ApiError(400, str(error), param=self.body.field_of(str(error))) from None
        finally:
            self._settle()
        if self._was_cut:
            if self._gone:
                raise ApiError(499, "The client closed the connection.", code="gone")
            raise ApiError(503, "The server is stopping; this answer was not finished.", code="stopping")
        self._echo()
        await self.reply.keep(self.answers, self._counts)
        if sum(len(answer.logprobs) for answer in self.answers) <= _FEW_SCORES:
            return JSONResponse(self.reply.whole(self.answers, self._counts))
        text = await asyncio.to_thread(lambda: "".join(written(self.reply.whole(self.answers, self._counts))))
        return Response(text, media_type="application/json", background=BackgroundTask(give_back))

    @property
    def _was_cut(self) -> bool:
        return any(answer.finish_reason in ("cancelled", None) for answer in self.answers)

    @property
    def _counts(self) -> Counts:
        return Counts(self.account.prompt_tokens, sum(request.num_cached for request in self.requests))

    def _echo(self) -> None:
        """Put the prompts before the answers, where that was asked for."""
        if not self.reply.echoes:
            return
        for index, answer in enumerate(self.answers):
            request = self.requests[index // self._n]
            scored = zip(request.prompt, request.prompt_logprobs, strict=False)  # no scores unless asked for
            answer.prepend(self.reply.echoes[index // self._n], scored)

    async def events(self) -> AsyncGenerator[str]:
        """Server-sent events, as the dialect writes them."""
        reply = self.reply
        try:
            for index in range(len(self.answers)):
                for chunk in reply.opening(index, index // self._n):
                    yield reply.written(chunk)
            async with aclosing(self._steps()) as steps:
                async for told in steps:
                    if text := self._chunks(told):
                        yield text
                    elif not told:
                        yield ": nothing yet\n\n"
            if self._was_cut:
                yield reply.failure(503, "The server is stopping; this answer was cut.", code="stopping")
                return
            await reply.keep(self.answers, self._counts)
            for event in reply.closing(self.answers, self._counts):
                yield reply.written(event)
            if end := reply.end():
                yield end
        except TimeoutError:
            self.account.error = "timeout"
            yield reply.failure(504, self._too_long(), code="timeout")
        except RequestError as error:
            self.account.error = "invalid_request_error"
            yield reply.failure(400, str(error), self.body.field_of(str(error)))
        except Exception as error:
            if not isinstance(error, RuntimeError):  # the worker has told of those
                _log.exception("a stream failed")
            self.account.error = "internal_error"
            yield reply.failure(500, "The server failed on this request.", code="internal_error")
        finally:
            self._settle()

    def _chunks(self, told: Sequence[tuple[int, list[Part], Piece]]) -> str:
        """What is written of some pieces; nothing to a client who is gone."""
        chunks = [
            c for index, parts, piece in told for c in self.reply.chunks(index, parts, piece, self.answers[index])
        ]
        return "" if self._gone else "".join(map(self.reply.written, chunks))

    def _settle(self) -> None:
        """Close the account; what was taken on is over."""
        self._desk.places.give_back(self._engine, self.reply.turn.num_places)
        account = self.account
        account.completion_tokens = num_tokens(self.answers)
        reasons = {answer.finish_reason or "gone" for answer in self.answers}
        account.finish = "gone" if "gone" in reasons or (self._gone and "cancelled" in reasons) else min(reasons)
        if self._desk.keep_text:
            account.answered = [answer.text for answer in self.answers]

    def _too_long(self) -> str:
        return f"The answer was not finished after {self.seconds:g} s and was cancelled; ask for fewer tokens."


class EventStream(StreamingResponse):
    """The response that is streamed. A client who does not read is waited for no longer than for an answer."""

    def __init__(self, run: _Run) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._run, self._events = run, run.events()
        super().__init__(self._events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The events are closed here and not by the collector, whatever happens."""
        try:
            async with asyncio.timeout(self._run.seconds + _READING_SECONDS), aclosing(self._events):
                await self.stream_response(send)
        except TimeoutError:
            self._run.account.error = "not_read"  # uvicorn closes a connection whose response was left unfinished


async def _gone(http: Request) -> None:
    """Ends when the client's side is closed, or the response is out."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _turn(body: Dialect) -> Turn:
    try:
        return body.turn()
    except RequestError as error:
        raise ApiError(400, str(error), param=body.field_of(str(error))) from None


async def _guarded(desk: Desk, engine: Engine, turn: Turn) -> Turn:
    """The turn as the guards let it go on; they see token ids as the text that these are."""
    ids = any(map(_is_ids, turn.inputs))
    seen = replace(turn, inputs=[_as_text(engine, item) for item in turn.inputs]) if ids else turn
    passed = seen
    for guard in desk.guards:
        passed = await guard.before(passed)
    return turn if passed is seen else passed


def _as_text(engine: Engine, item: Input | list[int]) -> Input:
    return engine.tokenizer.decode(item) if _is_ids(item) else cast(Input, item)


def _with_own_tools(turn: Turn, tools: Mapping[str, Tool]) -> Turn:
    """The turn with the server's own tools, in conversations; the client's come first where names are the same."""
    names = _own_names(turn, tools)
    if not names or _is_ids(turn.inputs[0]) or isinstance(turn.inputs[0], str):
        return turn
    own = [{"type": "function", "function": dict(tools[name].function)} for name in names]
    return replace(turn, tools=[*turn.tools, *own])


def _own_names(turn: Turn, tools: Mapping[str, Tool]) -> list[str]:
    functions = [tool["function"] for tool in turn.tools]
    theirs = {f["name"] for f in functions if f["name"] not in tools or f != dict(tools[f["name"]].function)}
    return [name for name in tools if name not in theirs]


def _requests(
    desk: Desk, model: Model, body: Dialect, turn: Turn, conveyor: Conveyor, owner: str | None
) -> list[EngineRequest]:
    """Encode and check every prompt of a body before any of them runs."""
    engine, requests = model.engine, []
    owner = None if desk.limits.share_prefixes else owner
    for number, item in enumerate(turn.inputs):
        try:
            prompt = _encode(engine, turn, item)
            max_tokens = _max_tokens(engine, desk.limits, len(prompt), turn)
            params = replace(turn.params, max_tokens=max_tokens, adapter=model.adapter)
            requests.append(engine.request(prompt, params, conveyor.listener(number * params.n), owner=owner))
        except (RequestError, DataError) as error:
            too_long = "context" in str(error)
            code = "context_length_exceeded" if too_long else None
            raise ApiError(400, str(error), param=body.field_of(str(error)), code=code) from None
    return requests


def _encode(engine: Engine, turn: Turn, item: Input | list[int]) -> list[int]:
    if _is_ids(item):
        return item
    if isinstance(item, str):
        return engine.encode(item)
    return conversation_prompt(
        engine,
        cast("list[Message]", item),
        tools=turn.tools,
        template=turn.template,
        goes_on=turn.goes_on,
        opens_answer=turn.opens_answer,
    )


def _max_tokens(engine: Engine, limits: Limits, prompt_tokens: int, turn: Turn) -> int:
    """The longest answer: what the request asks for if it fits, else what fits within the server's own limit."""
    room, wanted = engine.max_context - prompt_tokens, turn.max_tokens
    if wanted is not None and turn.is_ceiling:
        return max(min(room, wanted), 1)
    if wanted is None:
        return max(min(room, limits.max_tokens), 1)
    if 0 < room < wanted:
        raise RequestError(
            f"The context is {engine.max_context} tokens; the prompt has {prompt_tokens} and the "
            f"answer was to have up to {wanted}. Ask for at most {room}, or leave the limit out."
        )
    return wanted


def _is_ids(item: object) -> TypeGuard[list[int]]:
    return isinstance(item, list) and (not item or isinstance(item[0], int))
