"""Answering: a request body becomes requests to an engine, and what comes back becomes one response or a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from herd.errors import RequestError
from herd.infer.request import Piece
from herd.infer.request import Request as EngineRequest
from herd.knowledge.grounding import NOT_FOUND, Found
from herd.knowledge.index import Hit
from herd.serve.effort import EFFORT_FIELDS, TREE_WIDTH, Choice, talk_of
from herd.serve.errors import ApiError
from herd.serve.memory import give_back
from herd.serve.models import Model
from herd.serve.prompts import encode
from herd.serve.record import RequestRecord
from herd.serve.replies import Counts, Dialect, Reply, num_tokens, written
from herd.serve.rounds import Rounds, guarded, own_names, with_own_tools
from herd.serve.search import Search
from herd.serve.services import Services
from herd.serve.speech import Speech, parts_of
from herd.serve.streams import EventStream
from herd.serve.streams import gone as client_gone
from herd.serve.thinker import Thinker
from herd.serve.tools import CallReader, Part
from herd.serve.turn import Refused, Turn
from herd.serve.worker import PieceRelay
from herd.tokenizer.chat import tells_tools
from herd.tokenizer.specials import PYTHON_TAG
from herd.types import Message

_log = logging.getLogger("herd.serve")
_FEW_SCORES = 200  # tokens with their likeliest others: what is written of more is written beside the event loop
_CALL_TOKENS = (PYTHON_TAG, "<tool_call>")  # special tokens that open calls


async def answer(services: Services, model: Model, http: Request, body: Dialect) -> Response:
    """Run one request body, streamed or whole. A client that goes away takes its request with it.

    Raises:
        ApiError: the queue is full, a prompt does not fit, or the answer takes too long.
    """
    record: RequestRecord = http.scope["herd.request"]
    record.model = model.name
    turn, record.unheeded = await asyncio.to_thread(lambda: (_turn(body), body.unheeded(model)))
    turn = replace(with_own_tools(turn, services.tools), owner=record.owner, request=record.id)
    refusal: Refused | None = None
    found: Found | None = None
    choice = services.effort.choice(turn) if services.effort is not None else None
    if choice is not None:
        turn, record.unheeded = choice.drawn(turn), [name for name in record.unheeded if name not in EFFORT_FIELDS]
    if turn.tools and not await asyncio.to_thread(tells_tools, model.engine.tokenizer):
        record.unheeded = [*record.unheeded, "tools"]
    try:
        turn, found = await services.with_what_it_needs(turn, model.engine)
        if services.guards:
            turn = await guarded(services.guards, model.engine, turn)
    except Refused as refused:
        refusal = refused
    services.admission.admit(model.engine, turn.num_answers)
    gone = asyncio.create_task(client_gone(http))
    try:
        relay = PieceRelay()
        requests = await services.trials.in_turn(
            model.engine,
            turn.params,
            gone,
            lambda: services.requests(model, body.field_of, turn, relay, record.owner),
        )
        record.prompt_tokens = sum(len(request.prompt) for request in requests)
        if services.keep_text:
            record.asked = turn.inputs
        reply = body.reply(model, turn, [request.prompt for request in requests])
        run = _Run(services, model, requests, relay, body, reply, record, choice)
        if refusal is not None:
            run.refuse(refusal)
        elif found is not None:
            run.answer_from(found)
    except BaseException as error:
        services.admission.release(model.engine, turn.num_answers)
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
        services: Services,
        model: Model,
        requests: Sequence[EngineRequest],
        relay: PieceRelay,
        body: Dialect,
        reply: Reply,
        record: RequestRecord,
        choice: Choice | None = None,
    ) -> None:
        self.body = body
        self.requests, self.reply, self.record = list(requests), reply, record
        self.seconds = services.limits.timeout_seconds
        self._services, self._engine, self._relay, self._choice = services, model.engine, relay, choice
        self._until = asyncio.get_running_loop().time() + self.seconds
        self._gone = False
        self._instead: str | None = None  # of a word from the model: why an answer ends before it begins
        self._found: Found | None = None
        self._n = requests[0].params.n
        self._special = model.engine.tokenizer.special
        self._thinker = Thinker(model.engine, services.limits, reply.turn, requests[0])
        self.answers = [self._speech() for request in requests for _ in range(request.params.n)]
        self._rounds: dict[int, Rounds] = {}  # of answers that use the server's own tools
        self._at_work: set[asyncio.Task[None]] = set()
        self._notes: dict[int, list[Part]] = {}  # what tools did, not yet passed on
        self._latest: dict[int, EngineRequest] = {}  # by which an answer goes on behind its tools
        self._over: set[int] = set()  # answers whose end was passed on
        self._fault: Exception | None = None

    def refuse(self, refused: Refused) -> None:
        """A guard lets nothing be generated."""
        self._instead = "content_filter"
        for speech in self.answers:
            speech.refuse(refused)

    def answer_from(self, found: Found) -> None:
        """The answer is given from passages of the documents, or declined where they have none."""
        self._found = found
        if not found.passages and not found.beside:
            self._instead = "stop"

    def _speech(self) -> Speech:
        turn = self.reply.turn
        filters = [guard.after(turn) for guard in self._services.guards]
        tags = [self._special[name] for name in _CALL_TOKENS if name in self._special]
        thoughts = self._thinker.reader()
        judged = [guard.after(turn) for guard in self._services.guards] if thoughts is not None else []
        own = own_names(turn, self._services.tools)
        return Speech(self._reader(), filters, tags=tags, own=own, thoughts=thoughts, judged_thoughts=judged)

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
            self._services.worker.cancel(self._engine, request)

    async def _steps(self) -> AsyncGenerator[list[tuple[int, list[Part], Piece]]]:
        """What the client is to be told, piece by piece; an empty list where nothing came for a while."""
        if self._instead is not None:
            told = []
            for index, speech in enumerate(self.answers):
                parts = speech.say(NOT_FOUND) if self._instead == "stop" else []
                told.append((index, parts, Piece(index, "", (), (), self._instead)))
            yield told
            return
        quiet = self._services.limits.keep_alive_seconds
        if self._choice is not None and self._choice.how == "tree":
            async for told in self._searched(self._choice, quiet):
                yield told
            return
        batches = self._relay.pieces(self._services.worker, self._engine, self.requests, self._until, quiet)
        try:
            async with aclosing(batches):
                async for pieces in batches:
                    if self._fault is not None:
                        raise self._fault
                    taken = [await self._take(index, piece) for index, piece in pieces]
                    yield [told for told in taken if told is not None]
                    if pieces:
                        self.record.first_piece()
                    if self._services.guards:
                        self._cancel_what_is_refused()
        finally:
            for task in self._at_work:
                task.cancel()

    async def _searched(self, choice: Choice, quiet: float) -> AsyncGenerator[list[tuple[int, list[Part], Piece]]]:
        """The answer that a search over steps finds."""
        assert choice.judge is not None
        owner = None if self._services.limits.share_prefixes else self.record.owner
        search = Search(self._services.worker, self._engine, self._until, owner)
        talk, (speech,) = talk_of(self.reply.turn), self.answers
        run = search.run(self.requests[0], talk, choice.judge, answers=choice.count, width=TREE_WIDTH)
        task = asyncio.create_task(run)
        try:
            while not (await asyncio.wait({task}, timeout=min(quiet, 1.0)))[0]:
                if self._gone:
                    speech.take(Piece(0, "", (), (), "cancelled"))
                    return
                yield []
            found = task.result()
        finally:
            task.cancel()
        ended = "stop" if found.is_whole else "length"
        parts = await asyncio.to_thread(speech.take, Piece(0, found.text, (), (), ended))
        speech.num_tokens, speech.votes = found.num_tokens, {"answers": found.num_answers}
        yield [(0, parts, Piece(0, "", (), (), speech.finish_reason))]

    async def _take(self, index: int, piece: Piece) -> tuple[int, list[Part], Piece] | None:
        """What a client is told of a piece; where its answer calls tools of the server's, they begin to run."""
        speech = self.answers[index]
        if index in self._over:
            return None
        piece, goes_on = self._thinker.seen(index, piece, speech)
        judged = self._services.guards and piece.text + (piece.finish_reason or "")
        told = await asyncio.to_thread(speech.take, piece) if judged else speech.take(piece)
        if goes_on and speech.finish_reason is None:
            told += await self._answer_now(index, speech)
        parts = self._notes.pop(index, []) + told
        if speech.own_calls and piece.finish_reason and not speech.finish_reason:
            self._relay.hold(1)
            task = asyncio.create_task(self._use_tools(index))
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)
        if speech.finish_reason:
            self._over.add(index)
        if speech.finish_reason and (passages := self._passages(index)):
            reading = self._found.reading if self._found is not None else None
            parts += await asyncio.to_thread(speech.cite, passages, reading.text if reading else None)
        if piece.finish_reason != speech.finish_reason:  # as the client sees it
            piece = replace(piece, finish_reason=speech.finish_reason)
        return index, parts, piece

    async def _answer_now(self, index: int, speech: Speech) -> list[Part]:
        """Let an answer go on that stopped at the bound of thoughts; one that still thinks is made to end that."""
        words, prompt = self._thinker.continued(index, self.requests[index // self._n].prompt, speech)
        told = speech.take(Piece(index, words, (), (), None)) if words else []
        left = max(self._thinker.most - speech.num_tokens, 1)
        await self._go_on(index, prompt, left)
        return told

    async def _go_on(self, index: int, prompt: list[int], max_tokens: int) -> None:
        first = self.requests[index // self._n]
        params = replace(first.params, n=1, best_of=None, max_tokens=max_tokens, prompt_logprobs=None)
        owner = None if self._services.limits.share_prefixes else self.record.owner
        listener = self._relay.listener(index)
        request = await asyncio.to_thread(self._engine.request, prompt, params, listener, owner=owner)
        self.requests.append(request)
        self._latest[index] = request
        self._relay.go_on(request)

    def _passages(self, index: int) -> list[Hit]:
        if index in self._rounds:
            return self._rounds[index].errand.passages
        return self._found.passages if self._found is not None else []

    async def _use_tools(self, index: int) -> None:
        """Run the server's own tools that an answer calls, and let it go on."""
        try:
            await self._next_round(index)
        except Exception as error:
            self._fault = error
            self._end(index, "cancelled")
        self._relay.hold(-1)

    async def _next_round(self, index: int) -> None:
        speech, turn = self.answers[index], self.reply.turn
        if index not in self._rounds:
            talk = cast("list[Message]", turn.inputs[index // self._n])
            services = self._services
            self._rounds[index] = Rounds(services.tools, services.budget, services.guards, talk, turn, services.files)
            self._rounds[index].errand.found(self._found.passages if self._found is not None else [])
        rounds = self._rounds[index]
        goes_on = await rounds.run(speech, lambda parts: self._note(index, parts))
        try:
            for guard in self._services.guards if goes_on else ():
                await guard.before(replace(turn, inputs=[rounds.talk]))
        except Refused as refused:
            speech.refuse(refused)
            goes_on = False
        speech.next_round(self._reader())
        left = self._thinker.most - speech.num_tokens
        prompt = await asyncio.to_thread(
            encode, self._engine, turn, rounds.talk, builtin=own_names(turn, self._services.tools)
        )
        room = self._engine.max_context - len(prompt)
        if self._gone or not goes_on or min(left, room) < 1:
            self._end(index, "cancelled" if self._gone else "length")
            return
        self.record.prompt_tokens += len(prompt)
        await self._go_on(index, prompt, min(left, room))

    def _note(self, index: int, parts: list[Part]) -> None:
        self._notes.setdefault(index, []).extend(parts)
        self._relay.say(index, Piece(index, "", (), (), None))

    def _end(self, index: int, reason: str) -> None:
        self._relay.say(index, Piece(index, "", (), (), reason))

    def _cancel_what_is_refused(self) -> None:
        for index, request in self._latest.items():
            if self.answers[index].refusal is not None and not request.finished:
                self._services.worker.cancel(self._engine, request)
        for number, request in enumerate(self.requests):
            mine = self.answers[number * self._n : (number + 1) * self._n]
            if mine and all(speech.refusal is not None for speech in mine) and not request.finished:
                self._services.worker.cancel(self._engine, request)

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
        await self._choose()
        await self.reply.keep(self.answers, self._counts)
        if sum(len(answer.logprobs) for answer in self.answers) <= _FEW_SCORES:
            return JSONResponse(self.reply.whole(self.answers, self._counts))
        text = await asyncio.to_thread(lambda: "".join(written(self.reply.whole(self.answers, self._counts))))
        return Response(text, media_type="application/json", background=BackgroundTask(give_back))

    async def _choose(self) -> list[tuple[int, list[Part], Piece]]:
        """Of answers that were drawn to choose among the chosen one stays; what is told of it."""
        if self._choice is None:
            return []
        if len(self.answers) > 1:
            talk = talk_of(self.reply.turn)
            self.answers = [await asyncio.to_thread(self._choice.chosen, self.answers, talk)]
        (speech,) = self.answers
        return [(0, parts_of(speech), Piece(0, "", (), (), speech.finish_reason))]

    @property
    def _was_cut(self) -> bool:
        return any(answer.finish_reason in ("cancelled", None) for answer in self.answers)

    @property
    def _counts(self) -> Counts:
        return Counts(self.record.prompt_tokens, sum(request.num_cached for request in self.requests))

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
            for index in range(1 if self._choice else len(self.answers)):
                for chunk in reply.opening(index, index // self._n):
                    yield reply.written(chunk)
            async with aclosing(self._steps()) as steps:
                async for told in steps:
                    if text := "" if self._choice else self._chunks(told):
                        yield text
                    elif not told:
                        yield ": nothing yet\n\n"
            if self._was_cut:
                yield reply.failure(503, "The server is stopping; this answer was cut.", code="stopping")
                return
            for chosen in await self._choose():
                yield self._chunks([chosen])
            await reply.keep(self.answers, self._counts)
            for event in reply.closing(self.answers, self._counts):
                yield reply.written(event)
            if end := reply.end():
                yield end
        except TimeoutError:
            self.record.error = "timeout"
            yield reply.failure(504, self._too_long(), code="timeout")
        except RequestError as error:
            self.record.error = "invalid_request_error"
            yield reply.failure(400, str(error), self.body.field_of(str(error)))
        except Exception as error:
            if not isinstance(error, RuntimeError):  # the worker has told of those
                _log.exception("a stream failed")
            self.record.error = "internal_error"
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
        """Complete the request's record and release its answers."""
        self._services.admission.release(self._engine, self.reply.turn.num_answers)
        for rounds in self._rounds.values():
            asyncio.get_running_loop().run_in_executor(None, rounds.close)
        record = self.record
        record.completion_tokens = num_tokens(self.answers)
        reasons = {answer.finish_reason or "gone" for answer in self.answers}
        record.finish = "gone" if "gone" in reasons or (self._gone and "cancelled" in reasons) else min(reasons)
        if self._services.keep_text:
            record.answered = [answer.text for answer in self.answers]

    def _too_long(self) -> str:
        return f"The answer was not finished after {self.seconds:g} s and was cancelled; ask for fewer tokens."


def _turn(body: Dialect) -> Turn:
    try:
        return body.turn()
    except RequestError as error:
        raise ApiError(400, str(error), param=body.field_of(str(error))) from None
