"""From what a turn asks to the tokens of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from herd.errors import DataError
from herd.infer.engine import Engine
from herd.tokenizer.chat import render
from herd.tokenizer.toolcalls import write
from herd.types import Conversation, Message, ToolCall

TEMPLATE_FIELDS = ("date_string",)
"""Variables of a template (`chat_template_kwargs`) that are known here."""


def conversation_prompt(
    engine: Engine,
    messages: Conversation,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    template: Mapping[str, Any] | None = None,
    goes_on: bool = False,
    opens_answer: bool = True,
) -> list[int]:
    """The tokens of a conversation up to where the answer begins.

    With `goes_on` the last message is the answer's beginning; without `opens_answer` no header of an answer follows.

    Raises:
        DataError: the messages cannot be told to the model.
    """
    tokenizer = engine.tokenizer
    if goes_on and messages[-1]["role"] != "assistant":
        raise DataError("continue_final_message needs a last message of the assistant's")
    date = (template or {}).get("date_string")
    messages = [_sayable(message, tokenizer.chat_style) for message in messages]
    if tools:
        place = 1 if messages[0]["role"] == "system" else 0
        if place == len(messages) or messages[place]["role"] != "user":  # where the tools are announced
            messages.insert(place, Message(role="user", content=""))
    opens = opens_answer and not goes_on
    tokens = render(tokenizer, messages, generation_prompt=opens, tools=tools or None, date=date).tokens
    return tokens[:-1] if goes_on else tokens


def _sayable(message: Message, style: str) -> Message:
    """A message as Llama's format can hold it: one call and nothing else, or text; more than that is worded as text."""
    calls = message.get("tool_calls") or []
    if len(calls) > 1 or (calls and message["content"].strip() and style == "hf"):
        text = message["content"]
        return Message(role=message["role"], content=f"{text}\n{_worded(calls)}" if text.strip() else _worded(calls))
    return message


def _worded(calls: list[ToolCall]) -> str:
    if len(calls) > 1:
        try:
            return write(calls, "python")[0]
        except DataError:  # names that are none in Python
            pass
    return "; ".join(write([call], "bare")[0] for call in calls)


def unknown_variables(variables: Mapping[str, Any] | None) -> Iterator[str]:
    """The template's variables that mean nothing here."""
    return (f"chat_template_kwargs.{name}" for name in variables or () if name not in TEMPLATE_FIELDS)
