"""Chat completions: `POST /v1/chat/completions`, as OpenAI describes it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from herd.infer.request import MAX_LOGPROBS, Piece
from herd.serve.answers import Desk, answer
from herd.serve.body import MAX_MESSAGES, Generation, NotSupported, OnlyEmpty, OnlyFalse, OnlyText, enum_of, only
from herd.serve.documents import ChatCompletion, streamed
from herd.serve.errors import ApiError
from herd.serve.forms import ResponseFormat, Tool, ToolChoice, call_schema
from herd.serve.messages import ChatMessage
from herd.serve.models import Models
from herd.serve.replies import Event, Gathered, Reply, Unscored, usage_of
from herd.serve.turn import Turn
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Conversation, TokenLogprob, ToolCall


class ChatRequest(Generation):
    """The body of `POST /v1/chat/completions`."""

    input_field: ClassVar[str] = "messages"

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false keeps the first call of an answer.")

    store: OnlyFalse = None
    functions: OnlyEmpty = None
    function_call: Annotated[Any, only("none", "auto"), enum_of("none", "auto")] = None
    modalities: OnlyText = None
    audio: NotSupported = None
    prediction: NotSupported = None
    reasoning_effort: NotSupported = None
    verbosity: NotSupported = None
    web_search_options: NotSupported = None

    @model_validator(mode="after")
    def _one_form(self) -> ChatRequest:
        formed = self.response_format is not None and self.response_format.type != "text"
        names = {tool.function.name for tool in self.tools or ()}
        if len(names) != len(self.tools or ()):
            raise ValueError("has two `tools` of one name")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"has no function {self.tool_choice.function.name!r} in `tools` for its `tool_choice`")
        if self.tool_choice == "required" and not names:
            raise ValueError("has a `tool_choice` of required, but no `tools`")
        if sum((formed, self.structured_outputs is not None, self.must_call)) > 1:
            raise ValueError(
                "may have only one of `response_format`, `structured_outputs` and a required `tool_choice`"
            )
        return self

    @property
    def conversation(self) -> Conversation:
        """The messages as the engine takes them."""
        return [message.to_message() for message in self.messages]

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, as OpenAI writes them."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools or ()]

    @property
    def must_call(self) -> bool:
        """The answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def constraint(self) -> dict[str, Any]:
        """The engine's setting for the form of the answer; empty where it is free."""
        if self.must_call:
            functions = [tool.function for tool in self.tools or ()]
            if isinstance(self.tool_choice, ToolChoice):
                functions = [f for f in functions if f.name == self.tool_choice.function.name]
            return {"json_schema": call_schema(functions)}
        if self.response_format is not None and (found := self.response_format.constraint()):
            return found
        return super().constraint()

    @property
    def form_field(self) -> str:
        """Where the form of the answer was asked for."""
        if self.structured_outputs is not None:
            return "structured_outputs"
        return "tools" if self.must_call else "response_format"

    def turn(self) -> Turn:
        """What is asked for.

        Raises:
            RequestError: the form of the answer is nested too deeply.
        """
        return Turn(
            inputs=[self.conversation],
            params=self.sampling(),
            max_tokens=self.wanted_tokens,
            tools=self.usable_tools,
            one_call=self.parallel_tool_calls is False,
            stream=bool(self.stream),
            with_usage=self.with_usage,
        )

    def reply(self, tokenizer: Tokenizer, model: str, turn: Turn, prompts: Sequence[list[int]]) -> ChatReply:
        """How it is answered."""
        return ChatReply(tokenizer, model, turn, prompts)


class ChatReply(Reply):
    """`chat.completion` objects, and their chunks."""

    id_prefix = "chatcmpl-"

    def whole(self, answers: Sequence[Gathered], prompt_tokens: int) -> dict[str, Any]:
        """The response that is not streamed."""
        usage = usage_of(prompt_tokens, sum(answer.num_tokens for answer in answers))
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return self._frame("chat.completion", choices) | {"usage": usage}

    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """The first chunk of an answer: who speaks."""
        yield self._delta(index, {"role": "assistant", "content": ""})

    def chunks(self, index: int, piece: Piece, answer: Gathered) -> Iterator[Event]:
        """Add a piece to its answer; the chunks that it makes."""
        text, calls = self.take(index, piece, answer)
        finish = "tool_calls" if answer.calls and piece.finish_reason else piece.finish_reason
        for place, call in enumerate(calls):
            yield self._delta(index, {"tool_calls": [{"index": place} | call_object(call)]})
        logprobs = self._logprobs(piece.logprobs)
        if text or finish or (logprobs and piece.logprobs):
            yield self._delta(index, {"content": text} if text else {}, logprobs, finish)

    def closing(self, answers: Sequence[Gathered], prompt_tokens: int) -> Iterator[Event]:
        """The chunk of token counts, where it was asked for."""
        if self.turn.with_usage:
            usage = usage_of(prompt_tokens, sum(answer.num_tokens for answer in answers))
            yield self._frame("chat.completion.chunk", []) | {"usage": usage}

    def _choice(self, index: int, answer: Gathered) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
        choice["logprobs"] = self._logprobs(answer.logprobs)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message |= {"content": answer.text or None, "tool_calls": [call_object(call) for call in answer.calls]}
            choice["finish_reason"] = "tool_calls"
        return choice | {"message": message}

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> Event:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, entries: Sequence[TokenLogprob | Unscored]) -> dict[str, Any] | None:
        if self.turn.params.logprobs is None:
            return None
        return {"content": [self._entry(entry) for entry in entries], "refusal": None}

    def _entry(self, entry: TokenLogprob | Unscored) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.token, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token, b"")
        return {"token": self.name_of(token), "logprob": logprob, "bytes": list(data)}


def call_object(call: ToolCall) -> dict[str, Any]:
    """A tool call as OpenAI writes it."""
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": "call_" + uuid.uuid4().hex[:24], "type": "function", "function": function}


def routes(desk: Desk, models: Models) -> APIRouter:
    """The router of this dialect."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions", response_model=None, responses=streamed(ChatCompletion))
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        model = models.find(body.model)
        if not model.engine.speaks_chat:
            raise ApiError(
                400,
                f"`{model.name}` is a base model, never trained on conversations; use /v1/completions.",
                code="no_chat",
            )
        return await answer(desk, model, http, body)

    return router
