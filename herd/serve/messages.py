"""The messages of a conversation, as OpenAI writes them.

They are a history: who sends it has it from somewhere, this server or another. What nobody knows in it is passed over
and named; whatever this server answered can be sent back.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from herd.serve.attachments import attached_file
from herd.serve.body import MAX_MESSAGES, NoEffect, Open
from herd.serve.unheeded import Unheeded
from herd.types import AttachedFile, Message, ToolCall

_TEXTS = ("text", "input_text", "output_text", "refusal")
_FILES = ("file", "input_file")
_UNTOLD = ("reasoning", "thinking", "redacted_thinking")


class FileFields(Open):
    """A file by its id (`POST /v1/files`), or whole, in base64."""

    file_id: str | None = Field(None, max_length=100)
    file_data: str | None = None
    filename: str | None = Field(None, max_length=1024)


class TextPart(FileFields):
    """A part of a message's content: text, or a file."""

    type: str
    text: str | None = None
    refusal: str | None = None
    file: FileFields | None = None

    @model_validator(mode="after")
    def _is_text(self) -> TextPart:
        if self.type in _FILES:
            self.as_file()
            return self
        if self.type not in _TEXTS + _UNTOLD:
            raise ValueError(f"is of type {self.type[:40]!r}, and this server reads text and files; leave it out")
        if self.type in _TEXTS and self.said is None:
            raise ValueError(f"needs `{'refusal' if self.type == 'refusal' else 'text'}`")
        return self

    def as_file(self) -> AttachedFile:
        """The file.

        Raises:
            ValueError: there is none, or it is no base64.
        """
        given = self if self.type == "input_file" else self.file
        if given is None:
            raise ValueError("needs `file`")
        return attached_file(id=given.file_id, data=given.file_data, name=given.filename)

    @property
    def said(self) -> str | None:
        """The text."""
        return self.refusal if self.type == "refusal" else self.text


Content = str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def text_of(content: Content | None) -> str:
    """A content's text; what a model thought before it answered is not told again."""
    if isinstance(content, str):
        return content
    return "".join(part.said or "" for part in content or () if part.type in _TEXTS)


def spoken(role: str, content: Content) -> Message:
    """What somebody said, with the files that came with it."""
    message = Message(role=role, content=text_of(content))
    if isinstance(content, list) and (files := [part.as_file() for part in content if part.type in _FILES]):
        message["files"] = files
    return message


class SpokenMessage(Open):
    """What the system or the user says; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Annotated[Any, Unheeded()] = None

    def to_message(self) -> Message:
        """The house's own noun."""
        return spoken("system" if self.role == "developer" else self.role, self.content)


class CalledFunction(Open):
    """The function of a tool call, its arguments as JSON."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any] | None = None

    def as_call(self) -> ToolCall | None:
        """The house's own noun; none where the arguments are no JSON object, as in a call that was cut."""
        arguments = self.arguments or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
                json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
            except (ValueError, RecursionError):  # UnicodeEncodeError is one: half a character is no text
                return None
        return ToolCall(name=self.name, arguments=arguments) if isinstance(arguments, dict) else None


class AssistantCall(Open):
    """A call the assistant asked for."""

    id: NoEffect = None
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Open):
    """What the assistant said, or what it wanted called."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[AssistantCall], Field(fail_fast=True)] | None = None
    refusal: str | None = None
    name: Annotated[Any, Unheeded()] = None
    reasoning_content: Annotated[Any, Unheeded("")] = None
    annotations: NoEffect = None
    tool_trace: NoEffect = None
    documents: NoEffect = None
    votes: NoEffect = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if "content" not in self.model_fields_set and not self.tool_calls and self.refusal is None:
            raise ValueError("needs `content` or `tool_calls`")
        return self

    def to_message(self) -> Message:
        """The house's own noun. A call that is none is told as it was written."""
        content = text_of(self.content) or self.refusal or ""
        return said(content, [call.function for call in self.tool_calls or ()])


def said(content: str, functions: list[CalledFunction]) -> Message:
    """What the assistant said and called, as one message."""
    calls = []
    for function in functions:
        call = function.as_call()
        if call is None:
            content += f'{{"name": {json.dumps(function.name)}, "parameters": {function.arguments}'
        else:
            calls.append(call)
    message = Message(role="assistant", content=content)
    if calls:
        message["tool_calls"] = calls
    return message


class ToolMessage(Open):
    """What a tool answered; `function` is OpenAI's older word for the role."""

    role: Literal["tool", "function"]
    content: Content | None = None
    tool_call_id: NoEffect = None
    name: NoEffect = None

    def to_message(self) -> Message:
        """The house's own noun: Llama's role for it is `ipython`."""
        return Message(role="ipython", content=text_of(self.content))


ChatMessage = Annotated[SpokenMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
