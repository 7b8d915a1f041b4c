"""The items that the Responses API's conversations are made of: messages, calls, what tools answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from herd.serve.body import NoEffect, Open
from herd.serve.messages import CalledFunction, Content, said, spoken, text_of
from herd.serve.unheeded import Unheeded
from herd.types import Conversation, Message


class MessageItem(Open):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: NoEffect = None
    status: NoEffect = None
    phase: NoEffect = None


class CallItem(Open):
    """A call that the assistant asked for."""

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1, max_length=256)
    arguments: str = ""
    id: NoEffect = None
    status: NoEffect = None


class ResultItem(Open):
    """What a tool answered."""

    type: Literal["function_call_output"]
    call_id: NoEffect = None
    output: Content
    id: NoEffect = None
    status: NoEffect = None


class ReasoningItem(Open):
    """What a model thought before it answered; it is not told again."""

    type: Literal["reasoning"]
    id: NoEffect = None
    status: NoEffect = None
    summary: Annotated[Any, Unheeded()] = None
    content: Annotated[Any, Unheeded()] = None
    encrypted_content: Annotated[Any, Unheeded()] = None


class UseItem(Open):
    """What a tool of the server's own did for an earlier answer; that answer is told again, this is not."""

    type: Literal["mcp_call", "file_search_call"]
    id: NoEffect = None
    status: NoEffect = None
    name: NoEffect = None
    arguments: NoEffect = None
    output: NoEffect = None
    error: NoEffect = None
    files: NoEffect = None
    server_label: NoEffect = None
    approval_request_id: NoEffect = None
    queries: NoEffect = None
    results: NoEffect = None
    read_out: NoEffect = None


class ReferenceItem(Open):
    """An item of an answer that is kept, by its id."""

    type: Literal["item_reference"] | None = None
    id: str = Field(max_length=100)


def _kind(item: Any) -> str:
    given = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    if isinstance(item, ReferenceItem) or (given is None and isinstance(item, dict) and item.keys() <= {"type", "id"}):
        return "item[item_reference]"
    return "item[message]" if given is None else f"item[{given}]"


Item = Annotated[
    Annotated[MessageItem, Tag("item[message]")]
    | Annotated[CallItem, Tag("item[function_call]")]
    | Annotated[ResultItem, Tag("item[function_call_output]")]
    | Annotated[ReasoningItem, Tag("item[reasoning]")]
    | Annotated[UseItem, Tag("item[mcp_call]")]
    | Annotated[UseItem, Tag("item[file_search_call]")]
    | Annotated[ReferenceItem, Tag("item[item_reference]")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="is of a type that is not known here; message, function_call, function_call_output, "
        "reasoning, mcp_call, file_search_call and item_reference are",
    ),
]

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def listed(item: dict[str, Any], id: str) -> dict[str, Any]:
    """An item that was sent, as it is listed: with an id, and a text of a message as a part of it."""
    found = {"id": id, "status": "completed"} | item
    if found["type"] == "message" and isinstance(found["content"], str):
        answered: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": []}
        part = answered if found["role"] == "assistant" else {"type": "input_text"}
        found["content"] = [part | {"text": found["content"]}]
    return found


def conversation(items: Sequence[Item], instructions: str | None) -> Conversation:
    """The items as messages: a text of the assistant's and the calls behind it are one."""
    messages: Conversation = [Message(role="system", content=instructions)] if instructions else []
    text, calls = "", list[CalledFunction]()

    def close() -> None:
        nonlocal text, calls
        if text or calls:
            messages.append(said(text, calls))
        text, calls = "", []

    for item in items:
        match item:
            case MessageItem(role="assistant"):
                close()
                text = text_of(item.content)
            case CallItem():
                calls.append(CalledFunction(name=item.name, arguments=item.arguments))
            case MessageItem():
                close()
                role: Literal["system", "user"] = "user" if item.role == "user" else "system"
                messages.append(spoken(role, item.content))
            case ResultItem():
                close()
                messages.append(Message(role="ipython", content=text_of(item.output)))
    close()
    return messages
