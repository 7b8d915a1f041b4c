"""The messages of a conversation, as OpenAI writes them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from herd.errors import DataError
from herd.serve.body import Name, NoEffect, NotSupported, OnlyEmpty, Strict, enum_of, only
from herd.tokenizer.toolcalls import write
from herd.types import Message, ToolCall


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]


def text_of(content: Content | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class SpokenMessage(Strict):
    """What the system or the user says; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user"]
    content: Content

    def to_message(self) -> Message:
        """The house's own noun."""
        return Message(role="system" if self.role == "developer" else self.role, content=text_of(self.content))


class CalledFunction(Strict):
    """The function of a tool call, its arguments as JSON."""

    name: Name
    arguments: str

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> CalledFunction:
        try:
            arguments = json.loads(self.arguments)
            json.dumps(arguments, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # UnicodeEncodeError is one: half a character is no text
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError("needs `arguments` to be a JSON object")
        return self


class AssistantCall(Strict):
    """A call the assistant asked for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Strict):
    """What the assistant said, or what it wanted called."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[AssistantCall], Field(fail_fast=True)] | None = None
    refusal: Annotated[Any, only(""), enum_of("")] = None
    annotations: OnlyEmpty = None
    audio: NotSupported = None
    function_call: NotSupported = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("needs `content` or `tool_calls`")
        try:
            self.to_message()
        except DataError as error:
            raise ValueError(f"cannot be told to the model: {error}") from None
        return self

    def to_message(self) -> Message:
        """The house's own noun. Several calls at once are written as Llama writes them: `[f(a=1), g()]`."""
        message = Message(role="assistant", content=text_of(self.content))
        functions = [call.function for call in self.tool_calls or ()]
        calls = [ToolCall(name=f.name, arguments=json.loads(f.arguments)) for f in functions]
        if len(calls) > 1:
            message["content"] += write(calls, "python")[0]
        elif calls:
            message["tool_calls"] = calls
        return message


class ToolMessage(Strict):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: NoEffect = None
    name: NoEffect = None

    def to_message(self) -> Message:
        """The house's own noun: Llama's role for it is `ipython`."""
        return Message(role="ipython", content=text_of(self.content))


ChatMessage = Annotated[SpokenMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
