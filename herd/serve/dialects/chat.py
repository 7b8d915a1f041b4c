"""Chat completions: `POST /v1/chat/completions`, as OpenAI describes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from herd.infer.request import MAX_LOGPROBS, Piece
from herd.serve.answers import answer
from herd.serve.body import MAX_MESSAGES, Generation, NotSupported, OnlyEmpty, OnlyText, enum_of, only
from herd.serve.documents import ChatCompletion, streamed
from herd.serve.forms import MAX_TOOLS, AllowedChoice, Choice, ResponseFormat, Talk, Tool, ToolChoice
from herd.serve.messages import ChatMessage
from herd.serve.models import Model, Models
from herd.serve.prompts import unknown_variables
from herd.serve.reading import Apart
from herd.serve.replies import (
    Counts,
    Event,
    Reply,
    cited_fields,
    num_tokens,
    token_object,
    traced_call,
    traced_result,
    usage_of,
)
from herd.serve.services import Services
from herd.serve.speech import Speech, Unscored
from herd.serve.tools import Begun, Call, Cited, Grown, Part, Ran, Running, Thought, Words
from herd.serve.turn import Turn
from herd.serve.unheeded import Unheeded, named
from herd.types import Conversation, TokenLogprob


class ChatRequest(Generation, Talk):
    """The body of `POST /v1/chat/completions`."""

    input_field: ClassVar[str] = "messages"
    own_form: ClassVar[str] = "response_format"

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false keeps the first call of an answer.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the template: date_string.")
    continue_final_message: bool | None = Field(None, description="The last message is the answer's beginning.")
    add_generation_prompt: bool | None = None

    store: Annotated[Any, Unheeded(False)] = None
    reasoning_effort: Annotated[Any, Unheeded("none")] = None
    verbosity: Annotated[Any, Unheeded("medium")] = None
    prediction: Annotated[Any, Unheeded()] = None
    moderation: Annotated[Any, Unheeded()] = None
    functions: OnlyEmpty = None
    function_call: Annotated[Any, only("none", "auto"), enum_of("none", "auto")] = None
    modalities: OnlyText = None
    audio: NotSupported = None
    web_search_options: NotSupported = None

    @model_validator(mode="after")
    def _options_fit(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("has `top_logprobs`, but no `logprobs: true`")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("has both `continue_final_message` and `add_generation_prompt`; one shuts out the other")
        return self

    @cached_property
    def choice(self) -> Choice:
        """What is said of calls."""
        tools = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools or ()]
        match self.tool_choice:
            case ToolChoice(function=function):
                return Choice(tools, mode="required", only=[function.name])
            case AllowedChoice(allowed_tools=allowed):
                return Choice(tools, mode=allowed.mode, only=[tool.function.name for tool in allowed.tools])
            case mode:
                return Choice(tools, mode=mode or "auto")

    @property
    def form(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where it is free."""
        return self.response_format.form if self.response_format is not None else None

    @property
    def conversation(self) -> Conversation:
        """The messages as the engine takes them."""
        return [message.to_message() for message in self.messages]

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def unheeded(self, model: Model) -> list[str]:
        """The names of fields that are accepted and cannot be honoured."""
        return named(self, unknown_variables(model.engine, self.chat_template_kwargs))

    def turn(self) -> Turn:
        """What is asked for.

        Raises:
            RequestError: the form of the answer is nested too deeply.
        """
        return Turn(
            inputs=[self.conversation],
            params=self.sampling(),
            max_tokens=self.wanted_tokens,
            tools=[dict(tool) for tool in self.choice.tools],
            own=self.own,
            documents=self.documents,
            beside=self.files,
            effort=self.reasoning_effort if isinstance(self.reasoning_effort, str) else None,
            one_call=self.parallel_tool_calls is False,
            must_call=self.choice.must_call,
            typed_calls=not self.choice.must_call and self.choice.looks_like(self.form),
            template=self.chat_template_kwargs or {},
            goes_on=bool(self.continue_final_message),
            opens_answer=self.add_generation_prompt is not False,
            stream=bool(self.stream),
            with_usage=self.with_usage,
            usage_throughout=self.usage_throughout,
        )

    def reply(self, model: Model, turn: Turn, prompts: Sequence[list[int]]) -> ChatReply:
        """How it is answered."""
        return ChatReply(model, turn, prompts)


class ChatReply(Reply):
    """`chat.completion` objects, and their chunks."""

    id_prefix = "chatcmpl-"
    _written_tokens = 0

    def whole(self, answers: Sequence[Speech], counts: Counts) -> dict[str, Any]:
        """The response that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return self._frame("chat.completion", choices) | {"usage": usage_of(counts, num_tokens(answers))}

    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """The first chunk of an answer: who speaks."""
        yield self._delta(index, {"role": "assistant", "content": ""})

    def chunks(self, index: int, parts: Sequence[Part], piece: Piece, answer: Speech) -> Iterator[Event]:
        """The chunks that a piece makes."""
        self._written_tokens += len(piece.tokens)
        deltas = [delta for part in parts if (delta := self._of(part, answer))]
        finish = piece.finish_reason
        if finish and answer.votes is not None:
            deltas.append({"votes": answer.votes})
        if finish and answer.refusal is not None:
            deltas.append({"refusal": answer.refusal})
        logprobs = self._logprobs(piece.logprobs)
        if not deltas and (finish or (logprobs and piece.logprobs)):
            deltas.append({})
        for number, delta in enumerate(deltas):
            is_last = number == len(deltas) - 1
            event = self._delta(index, delta, None if number else logprobs, finish if is_last else None)
            if is_last and finish and answer.verdict is not None:
                event["choices"][0]["verdict"] = answer.verdict
            yield event

    def _of(self, part: Part, answer: Speech) -> dict[str, Any]:
        match part:
            case Words(text):
                return {"content": text}
            case Thought(text):
                return {"reasoning_content": text}
            case Begun(call):
                return {"tool_calls": [{"index": answer.calls.index(call)} | call_object(call, arguments="")]}
            case Grown(call, text):
                return {"tool_calls": [{"index": answer.calls.index(call), "function": {"arguments": text}}]}
            case Cited():
                return cited_fields(part)
            case Running(use):
                return {"tool_trace": [{"index": answer.uses.index(use)} | traced_call(use)]}
            case Ran(use):
                return {"tool_trace": [{"index": answer.uses.index(use)} | traced_result(use)]}
        return {}

    def closing(self, answers: Sequence[Speech], counts: Counts) -> Iterator[Event]:
        """The chunk of token counts, where it was asked for."""
        if self.turn.with_usage:
            yield self._frame("chat.completion.chunk", []) | {"usage": usage_of(counts, num_tokens(answers))}

    def _choice(self, index: int, answer: Speech) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
        choice["logprobs"] = self._logprobs(answer.logprobs)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
        if answer.calls or self.turn.must_call:
            message["content"] = answer.text or None
        if answer.calls:
            message["tool_calls"] = [call_object(call, call.arguments) for call in answer.calls]
        choice |= {"verdict": answer.verdict} if answer.verdict is not None else {}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        if answer.cited is not None:
            message |= cited_fields(answer.cited)
        if answer.votes is not None:
            message["votes"] = answer.votes
        if answer.uses:
            message["tool_trace"] = [traced_call(use) | traced_result(use) for use in answer.uses]
        return choice | {"message": message}

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        frame = self._frame("chat.completion.chunk", [choice])
        if self.turn.usage_throughout:
            prompt = sum(map(len, self.prompts))
            frame["usage"] = usage_of(Counts(prompt), self._written_tokens)
        return frame

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> Event:
        frame: Event = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        if self.turn.with_usage:
            frame["usage"] = None  # of every chunk but the last one
        frame["system_fingerprint"], frame["choices"] = self.fingerprint, choices
        return frame

    def _logprobs(self, entries: Sequence[TokenLogprob | Unscored]) -> dict[str, Any] | None:
        if self.turn.params.logprobs is None:
            return None
        return {"content": [self._entry(entry) for entry in entries], "refusal": None}

    def _entry(self, entry: TokenLogprob | Unscored) -> dict[str, Any]:
        return token_object(self, entry.token, entry.logprob) | {
            "top_logprobs": [token_object(self, token, logprob) for token, logprob in entry.top]
        }


def call_object(call: Call, arguments: str) -> dict[str, Any]:
    """A tool call as OpenAI writes it."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def routes(services: Services, models: Models) -> APIRouter:
    """The router of this dialect."""
    router = APIRouter(prefix="/v1", route_class=Apart)

    @router.post("/chat/completions", response_model=None, responses=streamed(ChatCompletion))
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        return await answer(services, models.find_chat(body.model), http, body)

    return router
