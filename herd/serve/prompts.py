"""From what a turn asks to the tokens of its prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard, cast

from herd.errors import DataError, RequestError
from herd.infer.engine import Engine
from herd.infer.inputs import Input
from herd.serve.limits import Limits
from herd.serve.turn import Turn
from herd.tokenizer.chat import own_style, render
from herd.tokenizer.toolcalls import write
from herd.tokenizer.tools import BUILTIN_TOOLS
from herd.types import Conversation, Message, ToolCall

TEMPLATE_FIELDS = ("date_string",)
"""Variables (`chat_template_kwargs`) that Llama's own format has."""


def conversation_prompt(
    engine: Engine,
    messages: Conversation,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    builtin: Collection[str] = (),
    template: Mapping[str, Any] | None = None,
    goes_on: bool = False,
    opens_answer: bool = True,
) -> list[int]:
    """The tokens of a conversation up to where the answer begins.

    Tools that are `builtin` are told by their name alone to a model that knows them by it (Llama 3.1's three).
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
    known = [name for name in builtin if name in BUILTIN_TOOLS]
    tools = [{"type": name} if (name := tool["function"]["name"]) in known else tool for tool in tools]
    if len(known) < len(tools):
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


def encode(engine: Engine, turn: Turn, item: Input | list[int], *, builtin: Collection[str]) -> list[int]:
    """The tokens of one prompt of a turn.

    Raises:
        DataError: a conversation cannot be told to the model.
    """
    if is_ids(item):
        return item
    if isinstance(item, str):
        return engine.encode(item)
    return conversation_prompt(
        engine,
        cast("list[Message]", item),
        tools=turn.tools,
        builtin=builtin,
        template=turn.template,
        goes_on=turn.goes_on,
        opens_answer=turn.opens_answer,
    )


def longest(engine: Engine, limits: Limits, prompt_tokens: int, turn: Turn) -> int:
    """The longest answer: what the request asks for if it fits, else what fits within the server's own limit.

    Raises:
        RequestError: it does not fit.
    """
    room, wanted = engine.max_context - prompt_tokens, turn.max_tokens
    if wanted is not None and turn.is_ceiling:
        return max(min(room, wanted), 1)
    if wanted is None:
        return max(min(room, limits.max_tokens), 1)
    if 0 < room < wanted:
        raise RequestError(
            f"The context is {engine.max_context} tokens; the prompt has {prompt_tokens} and the "
            f"answer was to have up to {wanted}. Ask for at most {room}, or leave the limit out."
        )
    return wanted


def is_ids(item: object) -> TypeGuard[list[int]]:
    """Whether a prompt is given by its tokens."""
    return isinstance(item, list) and (not item or isinstance(item[0], int))
