"""Responses: `POST /v1/responses`, as OpenAI and the Open Responses specification describe it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from herd.errors import DataError, RequestError
from herd.infer.request import MAX_LOGPROBS
from herd.serve.answers import answer
from herd.serve.body import MAX_MESSAGES, Name, NoEffect, NotSupported, OnlyFalse, Strict
from herd.serve.dialects.items import ITEMS, Item, MessageItem, ReferenceItem, conversation, listed
from herd.serve.dialects.response_objects import ResponsesReply
from herd.serve.documents import REFUSALS, InputTokens, ResponseDeleted, ResponseItems, ResponseObject, streamed
from herd.serve.errors import ApiError
from herd.serve.forms import MAX_TOOLS, Choice, Talk, ToolFunction
from herd.serve.models import Model, Models
from herd.serve.reading import Apart
from herd.serve.replies import Reply
from herd.serve.services import Services
from herd.serve.store import Store
from herd.serve.turn import Refused, Turn
from herd.serve.unheeded import Unheeded, named
from herd.types import Conversation


class ResponseTool(ToolFunction):
    """A function the model may call."""

    type: Literal["function"]


class NamedTool(Strict):
    """The name of a function."""

    type: Literal["function"]
    name: Name


class AllowedTools(Strict):
    """The functions that may be called, and whether one must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class TextFormat(Strict):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: NoEffect = None
    strict: NoEffect = None


class TextOptions(Strict):
    """How texts are written."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, Unheeded("medium")] = None


class Reasoning(Strict):
    """How long a model thinks: ours do not."""

    effort: Annotated[Any, Unheeded("none")] = None
    summary: Annotated[Any, Unheeded()] = None
    generate_summary: Annotated[Any, Unheeded()] = None
    context: Annotated[Any, Unheeded("auto")] = None
    mode: Annotated[Any, Unheeded("standard")] = None


class ResponseStreamOptions(Strict):
    """What a stream carries besides text."""

    include_obfuscation: NoEffect = None


LOGPROBS = "message.output_text.logprobs"
Include = Literal[  # all but the first are about what no answer here holds
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class ResponsesRequest(Talk):
    """The body of `POST /v1/responses`."""

    input_field: ClassVar[str] = "input"
    own_form: ClassVar[str] = "text"

    input: str | Annotated[list[Item], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=100, description="Needs a server that keeps responses.")
    max_output_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: Annotated[list[Include], Field(max_length=16)] | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = Field(None, description="Keep the response, where the server keeps any.")

    reasoning: Reasoning | None = None
    metadata: Metadata | None = Field(None, description="Told back; has no effect on the answer.")
    truncation: Annotated[Literal["auto", "disabled"] | None, Unheeded("disabled")] = None
    max_tool_calls: int | None = Field(None, ge=0, description="Calls of the server's own tools, at most.")
    context_management: Annotated[Any, Unheeded()] = None
    moderation: Annotated[Any, Unheeded()] = None
    access_programs: Annotated[Any, Unheeded()] = None
    image: Annotated[Any, Unheeded()] = None
    background: OnlyFalse = None
    conversation: NotSupported = None
    prompt: NotSupported = None

    @model_validator(mode="after")
    def _schema_fits(self) -> ResponsesRequest:
        if (
            self.text
            and self.text.format
            and (self.text.format.type == "json_schema") != bool(self.text.format.schema_)
        ):
            raise ValueError("needs `text.format.schema` with type json_schema, and only there")
        return self

    @cached_property
    def choice(self) -> Choice:
        """What is said of calls."""
        tools = [
            {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type", "strict"})}
            for tool in self.tools or ()
        ]
        match self.tool_choice:
            case NamedTool(name=name):
                return Choice(tools, mode="required", only=[name])
            case AllowedTools(mode=mode, tools=allowed):
                return Choice(tools, mode=mode, only=[tool.name for tool in allowed])
            case mode:
                return Choice(tools, mode=mode or "auto")

    @property
    def form(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where it is free."""
        given = self.text.format if self.text else None
        return None if given is None or given.type == "text" else given.schema_ or {}

    @property
    def items(self) -> Sequence[Item]:
        """What was sent, as items."""
        return [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return (self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or ()) else None


class _Asked:
    """A body with what was said before it: the dialect's side of one turn."""

    def __init__(
        self, body: ResponsesRequest, earlier: Sequence[Item], sent: Sequence[Item], store: Store | None, owner: str
    ) -> None:
        self._body, self._earlier, self._sent, self._store, self._owner = body, earlier, sent, store, owner

    @property
    def conversation(self) -> Conversation:
        """The messages as the engine takes them.

        Raises:
            RequestError: there are none.
        """
        messages = conversation([*self._earlier, *self._sent], self._body.instructions)
        if not messages:
            raise RequestError("There is nothing to answer: `input` holds no message.")
        return messages

    def turn(self) -> Turn:
        """What is asked for."""
        body = self._body
        return Turn(
            inputs=[self.conversation],
            params=body.sampling(),
            max_tokens=body.max_output_tokens,
            tools=[dict(tool) for tool in body.choice.tools],
            own=body.own,
            documents=body.documents,
            beside=body.files,
            effort=body.reasoning.effort if body.reasoning and isinstance(body.reasoning.effort, str) else None,
            max_calls=body.max_tool_calls,
            one_call=body.parallel_tool_calls is False,
            must_call=body.choice.must_call,
            typed_calls=not body.choice.must_call and body.choice.looks_like(body.form),
            stream=bool(body.stream),
        )

    def reply(self, model: Model, turn: Turn, prompts: Sequence[list[int]]) -> Reply:
        """How it is answered."""
        sent = [item.model_dump(mode="json", exclude_unset=True) | {"type": item.type} for item in self._sent]
        store = None if self._body.store is False else self._store
        return ResponsesReply(
            model, turn, prompts, asked=_echoed(self._body), sent=sent, store=store, owner=self._owner
        )

    def field_of(self, message: str) -> str:
        """The field that a refusal of the engine is about."""
        return self._body.field_of(message)

    def unheeded(self, model: Model) -> list[str]:
        """The names of fields that are accepted and cannot be honoured."""
        also = iter(("store",)) if self._body.store and self._store is None else None
        return named(self._body, also)


def _echoed(body: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request."""
    given = body.model_dump(mode="json", by_alias=True)
    text: dict[str, Any] = {"format": {"type": "text"}}
    if body.text and body.text.format:
        text["format"] = body.text.format.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": given["max_tool_calls"],
        "metadata": given["metadata"] or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": given["prompt_cache_key"],
        "safety_identifier": given["safety_identifier"],
        "tool_choice": given["tool_choice"] or "auto",
        "tools": [_tool(tool) for tool in body.tools or ()],
        "text": text,
        "top_logprobs": body.top_logprobs or 0,
        "user": given["user"],
    }


def _tool(tool: ResponseTool) -> dict[str, Any]:
    whole = {"type": "function", "description": None, "parameters": None, "strict": False}
    return whole | tool.model_dump(mode="json", exclude_none=True)


def routes(services: Services, models: Models, store: Store | None) -> APIRouter:
    """The router of this dialect."""
    router = APIRouter(prefix="/v1/responses", route_class=Apart)

    async def asked(body: ResponsesRequest, http: Request) -> _Asked:
        owner, earlier = http.scope["herd.request"].owner, list[Item]()
        if body.previous_response_id is not None:
            there = _kept(store, "previous_response_id")
            found = await asyncio.to_thread(there.items, owner, body.previous_response_id)
            if found is None:
                raise _no_previous(body.previous_response_id)
            earlier = ITEMS.validate_python(found)
        sent = await asyncio.to_thread(_resolved, body.items, store, owner)
        return _Asked(body, earlier, sent, store, owner)

    @router.post("", response_model=None, responses=streamed(ResponseObject))
    async def create(body: ResponsesRequest, http: Request) -> Response:
        model = models.find_chat(body.model)
        return await answer(services, model, http, await asked(body, http))

    @router.post("/input_tokens", response_model=InputTokens, responses=REFUSALS)
    async def input_tokens(body: ResponsesRequest, http: Request) -> dict[str, Any]:
        model, record = models.find_chat(body.model), http.scope["herd.request"]
        dialect = await asked(body, http)
        record.model, record.unheeded = model.name, dialect.unheeded(model)
        try:
            count = await services.count(dialect.turn(), model.engine, record.owner)
        except (RequestError, DataError, Refused) as error:
            raise ApiError(400, str(error), param="input") from None
        return {"object": "response.input_tokens", "input_tokens": count}

    @router.get("/{id}", response_model=ResponseObject, responses=REFUSALS)
    async def get(id: str, http: Request) -> Response:
        found = await asyncio.to_thread(_kept(store).get, http.scope["herd.request"].owner, id)
        if found is None:
            raise _no_response(id)
        return JSONResponse(found.response)

    @router.get("/{id}/input_items", response_model=ResponseItems, responses=REFUSALS)
    async def input_items(
        id: str,
        http: Request,
        order: Literal["asc", "desc"] = "desc",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: str | None = None,
    ) -> Response:
        found = await asyncio.to_thread(_kept(store).get, http.scope["herd.request"].owner, id)
        if found is None:
            raise _no_response(id)
        data = [listed(item, f"item_{id}_{number}") for number, item in enumerate(found.input)]
        data = data if order == "asc" else data[::-1]
        if after is not None:
            places = [number for number, item in enumerate(data) if item["id"] == after]
            if not places:
                raise ApiError(400, f"There is no item `{after[:100]}` in this response.", param="after")
            data = data[places[0] + 1 :]
        page = data[:limit]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return JSONResponse({"object": "list", "data": page, "has_more": len(data) > limit} | ends)

    @router.delete("/{id}", response_model=ResponseDeleted, responses=REFUSALS)
    async def delete(id: str, http: Request) -> dict[str, Any]:
        if not await asyncio.to_thread(_kept(store).delete, http.scope["herd.request"].owner, id):
            raise _no_response(id)
        return {"id": id, "object": "response", "deleted": True}

    return router


def _resolved(items: Sequence[Item], store: Store | None, owner: str) -> Sequence[Item]:
    """The items, with those of kept answers in the place of references to them."""
    ids = [item.id for item in items if isinstance(item, ReferenceItem)]
    if not ids:
        return items
    if store is None:
        message = "This server keeps no responses (start it with store=FILE) to refer to; send the item itself."
        raise ApiError(400, message, param="input", code="no_store")
    found = store.answered(owner, ids)
    if missing := next((id for id in ids if id not in found), None):
        message = f"There is no item `{missing}` in an answer that is kept here; send the item itself."
        raise ApiError(404, message, param="input", code="item_not_found")
    known = dict(zip(found, ITEMS.validate_python(list(found.values())), strict=True))
    return [known[item.id] if isinstance(item, ReferenceItem) else item for item in items]


def _kept(store: Store | None, param: str | None = None) -> Store:
    if store is None:
        message = "This server keeps no responses (start it with store=FILE); send the whole conversation as `input`."
        raise ApiError(400, message, param=param, code="no_store")
    return store


def _no_response(id: str) -> ApiError:
    return ApiError(404, f"There is no response `{id[:100]}` here.", code="response_not_found")


def _no_previous(id: str) -> ApiError:
    message = f"There is no response `{id[:100]}` here to go on from; send the whole conversation as `input`."
    return ApiError(400, message, param="previous_response_id", code="previous_response_not_found")
