"""From what a turn asks to the tokens of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from herd.errors import DataError
from herd.infer.engine import Engine
from herd.tokenizer.chat import own_style, render
from herd.tokenizer.toolcalls import write
from herd.types import Conversation, Message, ToolCall

TEMPLATE_FIELDS = ("date_string",)
"""Variables (`chat_template_kwargs`) that Llama's own format has."""


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
    tokenizer, variables = engine.tokenizer, dict(template or {})
    if goes_on and messages[-1]["role"] != "assistant":
        raise DataError("continue_final_message needs a last message of the assistant's")
    opens = opens_answer and not goes_on
    style = own_style(tokenizer)
    date = variables.get("date_string", engine.wording.date)
    if style is None:
        asked: dict[str, Any] = {"tools": tools or None, "date": date, "variables": variables}
        asked |= {"generation_prompt": opens, "continue_final": goes_on, "read_special": engine.wording.read_special}
        return _by_template(engine, messages, asked)
    messages = [_sayable(message, style) for message in messages]
    if tools:
        place = 1 if messages[0]["role"] == "system" else 0
        if place == len(messages) or messages[place]["role"] != "user":  # where the tools are announced
            messages.insert(place, Message(role="user", content=""))
    tokens = render(tokenizer, messages, generation_prompt=opens, tools=tools or None, date=date).tokens
    return tokens[:-1] if goes_on else tokens


def _by_template(engine: Engine, messages: Conversation, asked: Mapping[str, Any]) -> list[int]:
    """The prompt as the checkpoint's template writes it. Many take one system message only: several are made one."""
    try:
        return render(engine.tokenizer, messages, **asked).tokens
    except DataError:
        said = [message["content"] for message in messages if message["role"] == "system"]
        if len(said) < 2:
            raise
    rest = [message for message in messages if message["role"] != "system"]
    return render(engine.tokenizer, [Message(role="system", content="\n\n".join(said)), *rest], **asked).tokens


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


def unknown_variables(engine: Engine, variables: Mapping[str, Any] | None) -> Iterator[str]:
    """The template's variables that mean nothing: Llama's own format knows few, another template gets them all."""
    if own_style(engine.tokenizer) is not None:
        yield from (f"chat_template_kwargs.{name}" for name in variables or () if name not in TEMPLATE_FIELDS)
