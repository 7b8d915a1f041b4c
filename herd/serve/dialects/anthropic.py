"""Messages: `POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic describes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from herd.errors import DataError, RequestError
from herd.infer.request import Piece
from herd.serve.answers import answer
from herd.serve.body import MAX_MESSAGES, MAX_STOPS, SHORT_STOPS, Name, OnlyEmpty, Open, Strict
from herd.serve.dialects.blocks import AnthropicTurn, Blocks, text_of
from herd.serve.documents import REFUSALS, AnthropicMessage, TokenCount, streamed
from herd.serve.errors import ApiError, as_anthropic, error_object
from herd.serve.forms import MAX_TOOLS, Choice, Talk
from herd.serve.models import Model, Models
from herd.serve.reading import Apart
from herd.serve.replies import Counts, Event, Reply, address_of, num_tokens, supported_by
from herd.serve.services import Services
from herd.serve.speech import Speech
from herd.serve.tools import Begun, Call, Cited, Ended, Grown, Part, Ran, Running, Thought, Use, Words
from herd.serve.turn import Refused, Turn
from herd.serve.unheeded import Unheeded
from herd.types import Conversation, Message, SamplingParams


class AnthropicTool(Open):
    """A tool the model may call."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]

    @model_validator(mode="after")
    def _takes_an_object(self) -> AnthropicTool:
        if self.input_schema.get("type", "object") != "object":
            raise ValueError("needs an `input_schema` of type object: a tool is called with named arguments")
        return self


class AnthropicChoice(Strict):
    """Whether a tool is called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _name_where_it_belongs(self) -> AnthropicChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("needs `name` with type tool, and only there")
        return self


class OutputFormat(Strict):
    """The form of the text."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """How the answer is written."""

    format: OutputFormat | None = None
    effort: Annotated[Any, Unheeded()] = None


class CountRequest(Talk):
    """The body of `POST /v1/messages/count_tokens`."""

    input_field: ClassVar[str] = "messages"
    own_form: ClassVar[str] = "output_config"

    messages: list[AnthropicTurn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: Blocks | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: AnthropicChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    thinking: Annotated[Any, Unheeded({"type": "disabled"})] = None
    cache_control: Annotated[Any, Unheeded()] = None
    context_management: Annotated[Any, Unheeded()] = None
    speed: Annotated[Any, Unheeded("standard")] = None
    inference_geo: Annotated[Any, Unheeded("global")] = None
    user_profile_id: Annotated[Any, Unheeded()] = None
    workspace_id: Annotated[Any, Unheeded()] = None
    billing_policy: Annotated[Any, Unheeded()] = None
    diagnostics: Annotated[Any, Unheeded()] = None
    compaction: Annotated[Any, Unheeded()] = None
    fallbacks: Annotated[Any, Unheeded()] = None
    fallback_credit_token: Annotated[Any, Unheeded()] = None
    container: OnlyEmpty = None
    mcp_servers: OnlyEmpty = None

    @cached_property
    def choice(self) -> Choice:
        """What is said of calls."""
        tools = []
        for tool in self.tools or ():
            function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
        given = self.tool_choice
        if given is None:
            return Choice(tools)
        mode = {"any": "required", "tool": "required"}.get(given.type, given.type)
        return Choice(tools, mode=mode, only=[given.name] if given.name is not None else None)

    @property
    def form(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where it is free."""
        given = (self.output_config and self.output_config.format) or self.output_format
        return given.schema_ if given else None

    @property
    def conversation(self) -> Conversation:
        """The messages as the engine takes them."""
        system = text_of(self.system)
        opening = [Message(role="system", content=system)] if system else []
        return opening + [message for turn in self.messages for message in turn.to_messages()]

    @property
    def wanted_logprobs(self) -> int | None:
        """None: this dialect has no report of them."""
        return None

    def turn(self) -> Turn:
        """What is asked for."""
        conversation = self.conversation
        return Turn(
            inputs=[conversation],
            params=self.sampling(),
            tools=[dict(tool) for tool in self.choice.tools],
            own=self.own,
            documents=self.documents,
            beside=self.files,
            effort=self.output_config.effort
            if self.output_config and isinstance(self.output_config.effort, str)
            else None,
            one_call=self.tool_choice is not None and self.tool_choice.disable_parallel_tool_use,
            must_call=self.choice.must_call,
            typed_calls=not self.choice.must_call and self.choice.looks_like(self.form),
            goes_on=conversation[-1]["role"] == "assistant" and not conversation[-1].get("tool_calls"),
            stream=bool(self.stream),
        )


class MessagesRequest(CountRequest):
    """The body of `POST /v1/messages`."""

    max_tokens: int = Field(ge=1, description="Longest answer, in tokens.")
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS, fail_fast=True), SHORT_STOPS
    ] = Field(default_factory=list)

    def sampling(self) -> SamplingParams:
        """The engine's settings but the longest answer."""
        return replace(super().sampling(), stop=tuple(self.stop_sequences))

    def turn(self) -> Turn:
        """What is asked for; `max_tokens` is required, so clients send what the largest model can."""
        return replace(super().turn(), max_tokens=self.max_tokens, is_ceiling=True)

    def reply(self, model: Model, turn: Turn, prompts: Sequence[list[int]]) -> MessagesReply:
        """How it is answered."""
        return MessagesReply(model, turn, prompts)


class MessagesReply(Reply):
    """`message` objects, whole or by events."""

    id_prefix = "msg_"

    def __init__(self, model: Model, turn: Turn, prompts: Sequence[list[int]] = ()) -> None:
        super().__init__(model, turn, prompts)
        self._index, self._is_open = -1, False  # of the block that is being written
        self._thinks = False  # it is a thought

    def whole(self, answers: Sequence[Speech], counts: Counts) -> dict[str, Any]:
        """The response that is not streamed; a call that was cut has nothing to be called with, and is left out."""
        (answer,) = answers
        blocks = [_thinking(answer.thought)] if answer.thought else []
        for one in answer.order:
            if isinstance(one, Use):
                blocks += [_using(one), _used(one)]
            elif not isinstance(one, Call) or one.is_whole:
                blocks.append(_block(one))
        if answer.cited is not None:
            blocks[-1]["citations"] = _citations(answer.cited)
        if answer.refusal is not None:
            blocks.append({"type": "text", "text": answer.refusal})
        return self._message(blocks) | self._ending(answer) | {"usage": _usage(counts, num_tokens(answers))}

    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """The message as it begins."""
        usage = _usage(Counts(sum(map(len, self.prompts))), 0)
        yield {"type": "message_start", "message": self._message([]) | {"usage": usage}}

    def chunks(self, index: int, parts: Sequence[Part], piece: Piece, answer: Speech) -> Iterator[Event]:
        """The events that a piece makes."""
        for part in parts:
            match part:
                case Thought(text):
                    if not self._is_open:
                        yield from self._open(_thinking(""), is_text=True)
                        self._thinks = True
                    yield self._delta({"type": "thinking_delta", "thinking": text})
                case Words(text):
                    if self._thinks:
                        yield from self._close()
                    yield from self._text(text)
                case Begun(call):
                    yield from self._close()
                    yield from self._open(_block(call) | {"input": {}}, is_text=False)
                case Grown(_, text):
                    yield self._delta({"type": "input_json_delta", "partial_json": text})
                case Ended():
                    yield {"type": "content_block_stop", "index": self._index}
                case Cited():
                    for citation in _citations(part):
                        yield self._delta({"type": "citations_delta", "citation": citation})
                case Running(use):
                    yield from self._close()
                    yield from self._at_once(_using(use))
                case Ran(use):
                    yield from self._at_once(_used(use))
        if piece.finish_reason:
            if answer.refusal is not None:
                yield from self._text(answer.refusal)
            yield from self._close()

    def closing(self, answers: Sequence[Speech], counts: Counts) -> Iterator[Event]:
        """How it ended."""
        usage = _usage(counts, num_tokens(answers))
        yield {"type": "message_delta", "delta": self._ending(answers[0]), "usage": usage}
        yield {"type": "message_stop"}

    def written(self, event: Event) -> str:
        """An event as it goes over the wire."""
        return f"event: {event['type']}\n{super().written(event)}"

    def failure(self, status: int, message: str, param: str | None = None, code: str | None = None) -> str:
        """What ends a stream that went wrong."""
        return self.written(as_anthropic(status, error_object(status, message, param, code)))

    def end(self) -> str:
        """Nothing: `message_stop` was the end."""
        return ""

    def _ending(self, answer: Speech) -> dict[str, Any]:
        stop = answer.stop if answer.stop in self.turn.params.stop else None  # not what the template ends turns with
        reasons = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
        reason = reasons.get(answer.finish_reason or "", "stop_sequence" if stop else "end_turn")
        return {"stop_reason": reason, "stop_sequence": stop if reason == "stop_sequence" else None}

    def _message(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": blocks}
        return head | {"stop_reason": None, "stop_sequence": None}

    def _text(self, text: str) -> Iterator[Event]:
        if not self._is_open:
            yield from self._open({"type": "text", "text": ""}, is_text=True)
        yield self._delta({"type": "text_delta", "text": text})

    def _open(self, block: dict[str, Any], *, is_text: bool) -> Iterator[Event]:
        self._index, self._is_open = self._index + 1, is_text
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _at_once(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._open(block, is_text=False)
        yield {"type": "content_block_stop", "index": self._index}

    def _close(self) -> Iterator[Event]:
        if self._is_open:
            self._is_open = self._thinks = False
            yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _block(said: str | Call) -> dict[str, Any]:
    if isinstance(said, str):
        return {"type": "text", "text": said}
    given = json.loads(said.arguments) if said.is_whole else {}
    return {"type": "tool_use", "id": "toolu_" + said.id[5:], "name": said.name, "input": given}


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _citations(cited: Cited) -> list[dict[str, Any]]:
    """Citations as Anthropic writes those of search results."""
    found = []
    for one, hit in supported_by(cited):
        number = one.passage or 0
        place = {"search_result_index": number, "start_block_index": 0, "end_block_index": 1}
        said = {"cited_text": one.quote, "source": address_of(hit), "title": hit.source}
        found.append({"type": "search_result_location"} | said | place)
    return found


def _using(use: Use) -> dict[str, Any]:
    """A call that the server runs itself; Anthropic's form for a tool of a server is that of MCP."""
    given = json.loads(use.call.arguments)
    head = {"type": "mcp_tool_use", "id": "mcptoolu_" + use.call.id[5:], "server_name": "herd"}
    return head | {"name": use.call.name, "input": given}


def _used(use: Use) -> dict[str, Any]:
    block = {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_" + use.call.id[5:], "is_error": use.failed}
    told = [use.output or "", *(f"{file.name}: {file.url}" for file in use.files)]
    return block | {"content": [{"type": "text", "text": text} for text in told]}


def _usage(counts: Counts, output_tokens: int) -> dict[str, int]:
    """Anthropic's count of tokens: what was computed before stands apart."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def routes(services: Services, models: Models) -> APIRouter:
    """The router of this dialect."""
    router = APIRouter(prefix="/v1/messages", route_class=Apart)

    @router.post("", response_model=None, responses=streamed(AnthropicMessage))
    async def messages(body: MessagesRequest, http: Request) -> Response:
        return await answer(services, models.find_chat(body.model), http, body)

    @router.post("/count_tokens", response_model=TokenCount, responses=REFUSALS)
    async def count_tokens(body: CountRequest, http: Request) -> dict[str, int]:
        model, record = models.find_chat(body.model), http.scope["herd.request"]
        record.model, record.unheeded = model.name, await asyncio.to_thread(body.unheeded, model)
        try:
            return {"input_tokens": await services.count(body.turn(), model.engine, record.owner)}
        except (DataError, RequestError, Refused) as error:
            raise ApiError(400, str(error), param="messages") from None

    return router
