"""What Anthropic's messages are made of: texts, documents, calls, what tools answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from herd.serve.attachments import attached_file
from herd.serve.body import MAX_MESSAGES, NoEffect, Open
from herd.serve.messages import CalledFunction, said
from herd.types import AttachedFile, Conversation, Message

_TEXT, _THOUGHT = "text", ("thinking", "redacted_thinking")
_FILES = {"document": "source", "container_upload": "file_id"}
_USED = ("mcp_tool_use", "mcp_tool_result")  # by the server itself, for an earlier answer: not told again


class Source(Open):
    """Where a document's contents are: here as text or in base64, or under the id of a file."""

    type: str | None = None
    media_type: NoEffect = None
    data: str | None = None
    file_id: str | None = Field(None, max_length=100)
    content: str | Annotated[list[Block], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None

    def as_file(self, title: str | None) -> AttachedFile:
        """The file.

        Raises:
            ValueError: it is not there, or no base64.
        """
        if self.type not in ("text", "base64", "file", "content"):
            raise ValueError("needs a source of type text, base64, file or content")
        if self.type in ("text", "content"):
            text = self.data if self.type == "text" else text_of(self.content)
            return AttachedFile(name=f"{title or 'document'}.txt", data=(text or "").encode())
        return attached_file(id=self.file_id, data=self.data, name=title or "document.pdf")


class Block(Open):
    """A part of a message: a text, a file, a call (`tool_use`), what a tool answered (`tool_result`)."""

    type: str
    text: str | None = None
    name: str | None = Field(None, max_length=256)
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Annotated[list[Block], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    source: Source | None = None
    title: str | None = Field(None, max_length=1024)
    file_id: str | None = Field(None, max_length=100)

    @model_validator(mode="after")
    def _is_known(self) -> Block:
        needs = {_TEXT: "text", "tool_use": "name", "tool_result": "tool_use_id"} | _FILES
        needs |= dict.fromkeys(_THOUGHT + _USED, "type")
        if self.type not in needs:
            raise ValueError(f"is of type {self.type[:40]!r}, and this server reads text and documents; leave it out")
        if getattr(self, needs[self.type]) is None:
            raise ValueError(f"needs `{needs[self.type]}`")
        if self.type in _FILES:
            self.as_file()
        return self

    def as_file(self) -> AttachedFile:
        """The file of a document, or of what is uploaded to the code's folder.

        Raises:
            ValueError: it is not there, or no base64.
        """
        return AttachedFile(id=self.file_id) if self.file_id is not None else self.source.as_file(self.title)  # type: ignore[union-attr]


Blocks = str | Annotated[list[Block], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def text_of(content: Blocks | None) -> str:
    """The text of some blocks."""
    if isinstance(content, str):
        return content
    return "".join(block.text or "" for block in content or () if block.type == _TEXT)


class AnthropicTurn(Open):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    def to_messages(self) -> Conversation:
        """The house's own nouns: what tools answered are messages of their own."""
        if isinstance(self.content, str):
            return [Message(role=self.role, content=self.content)]
        if self.role == "assistant":
            calls = [
                CalledFunction(name=block.name or "", arguments=block.input)
                for block in self.content
                if block.type == "tool_use"
            ]
            return [said(text_of(self.content), calls)]
        messages: Conversation = []
        for block in self.content:
            if block.type == "tool_result":
                messages.append(Message(role="ipython", content=text_of(block.content)))
                continue
            if not messages or messages[-1]["role"] != self.role:
                messages.append(Message(role=self.role, content=""))
            messages[-1]["content"] += block.text or ""
            if block.type in _FILES:
                messages[-1].setdefault("files", []).append(block.as_file())
        return messages or [Message(role=self.role, content="")]
