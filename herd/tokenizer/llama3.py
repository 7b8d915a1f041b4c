"""Llama 3's chat format: conversations to tokens with their loss mask, and back.

    <|begin_of_text|>
    <|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>      for every message
    <|start_header_id|>assistant<|end_header_id|>\\n\\n                      as the generation prompt

Content is encoded separately from its header and as plain text, so that no message can forge a turn. There are two
styles:

- `meta`, as in Meta's code: unchanged content; a message that does not end its turn (a tool call after
  `<|python_tag|>`, or a message followed by another one of the assistant) ends with `<|eom_id|>`.
- `hf`, as in Hugging Face's Llama 3.1 template: stripped content, date lines before every system prompt, a tool's
  result as a JSON string, every message ended by `<|eot_id|>` (calls by `<|eom_id|>` if built-in tools are offered).

`parse` reads back the same messages, with these exceptions, where the format is ambiguous:

- assistant text with the syntax of a tool call is read as a call;
- code for the interpreter with the syntax of a search (`x.call(query="...")`) or another call is read as that call;
- style `hf` strips whitespace around content, and its empty system message is read as none;
- the prompt's announcement of tools is read as part of its message.

Source: The Llama 3 Herd of Models, section 4.1.1; Meta's prompt format notes.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from herd.errors import DataError
from herd.tokenizer import toolcalls
from herd.tokenizer.specials import END_HEADER, END_OF_MESSAGE, END_OF_TURN, PYTHON_TAG, START_HEADER
from herd.tokenizer.tokenizer import Tokenizer
from herd.tokenizer.tools import ENVIRONMENT, Offered, announce, definitions, into_first_user_message
from herd.tokenizer.tools import checked as checked_tools
from herd.types import Message

Style = Literal["meta", "hf"]

ROLES = ("system", "user", "assistant", "ipython")
DATE = "26 Jul 2024"
"""The default date of Hugging Face's Llama 3.1 template."""


class Rendered(NamedTuple):
    """A conversation's tokens, and for each whether it is trained on."""

    tokens: list[int]
    mask: list[bool]


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    generation_prompt: bool = False,
    style: Style | None = None,
    tools: Sequence[Any] | None = None,
    tool_format: toolcalls.Format = "json",
    date: str | None = None,
) -> Rendered:
    """Tokens and loss mask of a conversation; the assistant's messages and their end tokens are trained on.

    `style` None means the checkpoint's. `tools` are announced to the model: OpenAI's schemas, and names of built-in
    ones (see `herd.tokenizer.tools`). `tool_format` is how style `meta` announces and calls custom tools. `date` is for
    the date lines: style `hf` always has them (default `DATE`), `meta` only if a date is given.

    Raises:
        DataError: no message, an unknown role, content that is not text, an invalid tool, a tool call that the format
            cannot express.
    """
    messages = checked_messages(messages)
    style = style or ("hf" if tokenizer.chat_style == "hf" else "meta")
    offered = checked_tools(tools)
    if style == "hf":
        messages = _as_hf(messages, _date_lines(date or DATE), offered)
        tool_format = "bare"
    elif offered != Offered() or date:
        messages = announce(messages, offered, tool_format, _date_lines(date).rstrip("\n") if date else "")
    tokens, mask = [tokenizer.bos_id], [False]
    for message, follower in zip(messages, [*messages[1:], None], strict=True):
        header = _header(tokenizer, message["role"])
        tagged = offered.builtin if style == "hf" else ()
        body = _body(tokenizer, message, tool_format, tagged)
        is_assistant = message["role"] == "assistant"
        if style == "hf":
            goes_on = bool(message.get("tool_calls") and offered.builtin)
        else:
            goes_on = tokenizer.special.get(PYTHON_TAG) in body or (follower or {}).get("role") == "assistant"
        body.append(tokenizer.eom_id if is_assistant and goes_on else tokenizer.eot_id)
        tokens += header + body
        mask += [False] * len(header) + [is_assistant] * len(body)
    if generation_prompt:
        header = _header(tokenizer, "assistant")
        tokens += header
        mask += [False] * len(header)
    return Rendered(tokens, mask)


def checked_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages in Herd's form: text content, `ipython` for `tool`, calls with name and arguments.

    Raises:
        DataError: one of them is not a valid message.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise DataError(f"the conversation is {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise DataError("the conversation has no messages")
    return [_checked(message, number) for number, message in enumerate(messages)]


def _checked(message: Message, number: int) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"message {number} is {type(message).__name__}, expected an object with role and content")
    role = "ipython" if message.get("role") == "tool" else message.get("role")
    if role not in ROLES:
        raise DataError(f"message {number}: role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    checked = Message(role=role, content=_text(message.get("content"), number))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list | tuple):
        raise DataError(f"message {number}: tool_calls is {type(calls).__name__}, expected a list of calls")
    if calls and role != "assistant":
        raise DataError(f"message {number}: tool_calls in a message of role {role}; only the assistant can call tools")
    if calls:
        checked["tool_calls"] = [toolcalls.checked(call, f"message {number}") for call in calls]
    return checked


def _text(content: Any, number: int) -> str:
    """Content as text: a string, nothing, or OpenAI's list of text parts."""
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    raise DataError(f"message {number}: content is {type(content).__name__}, expected text")


def _date_lines(date: str) -> str:
    return f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"


def _as_hf(messages: list[Message], date_lines: str, offered: Offered) -> list[Message]:
    """The messages as in Hugging Face's Llama 3.1 template."""
    worded = []
    for number, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] == "ipython":
            content = json.dumps(message["content"], ensure_ascii=False)
        if content and message.get("tool_calls"):
            raise DataError(f"message {number}: style `hf` cannot write text and a tool call in one message")
        worded.append(message | {"content": content})
    system = worded.pop(0)["content"] if messages[0]["role"] == "system" else ""
    head = f"{ENVIRONMENT}\n" if offered != Offered() else ""
    if offered.builtin:
        head += f"Tools: {', '.join(name for name in offered.builtin if name != toolcalls.CODE_INTERPRETER)}\n\n"
    worded.insert(0, Message(role="system", content=head + date_lines + system))
    return into_first_user_message(worded, definitions(offered, "bare")) if offered.custom else worded


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    start, end = tokenizer.chat_token(START_HEADER), tokenizer.chat_token(END_HEADER)
    return [start, *tokenizer.encode(role), end, *tokenizer.encode("\n\n")]


def _body(
    tokenizer: Tokenizer, message: Message, tool_format: toolcalls.Format, always_tagged: Sequence[str]
) -> list[int]:
    tokens = tokenizer.encode(message["content"])
    if calls := message.get("tool_calls"):
        text, tagged = toolcalls.write(calls, "json" if calls[0]["name"] in always_tagged else tool_format)
        if tagged:
            tokens.append(tokenizer.chat_token(PYTHON_TAG))
        tokens += tokenizer.encode(text)
    return tokens


# ---- parse -----------------------------------------------------------------------------------------------------------


def parse(tokenizer: Tokenizer, tokens: Sequence[int], *, style: Style | None = None) -> list[Message]:
    """The messages of a rendered conversation; the last one may be incomplete.

    A generation prompt at the end, with nothing after it, is no message.

    Raises:
        DataError: the tokens are not a conversation.
    """
    start_header, end_header = tokenizer.chat_token(START_HEADER), tokenizer.chat_token(END_HEADER)
    terminators = [tokenizer.special[name] for name in (END_OF_TURN, END_OF_MESSAGE) if name in tokenizer.special]
    position = 1 if tokens and tokens[0] == tokenizer.bos_id else 0
    messages: list[Message] = []
    while position < len(tokens):
        if tokens[position] != start_header:
            raise DataError(f"token {position} is {tokens[position]}, expected the header of a message")
        close = _find(tokens, (end_header,), position)
        if close is None:
            raise DataError(f"the header at token {position} is not closed")
        stop = _find(tokens, terminators, close)
        body = _after_blank_line(tokenizer, tokens[close + 1 : stop])
        if body or stop is not None:
            messages.append(_message(tokenizer, tokenizer.decode(tokens[position + 1 : close]), body))
        position = len(tokens) if stop is None else stop + 1
    return _from_hf(messages) if (style or tokenizer.chat_style) == "hf" else messages


def _message(tokenizer: Tokenizer, role: str, body: Sequence[int]) -> Message:
    if role == "assistant":
        return parse_reply(tokenizer, body)
    if role not in ROLES:
        raise DataError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    return Message(role=role, content=tokenizer.decode(body))


def _from_hf(messages: list[Message]) -> list[Message]:
    """Undo what the template adds: the date lines, and the JSON string around a tool's result."""
    for message in messages:
        if message["role"] == "ipython":
            with contextlib.suppress(ValueError):
                said = json.loads(message["content"])
                message["content"] = said if isinstance(said, str) else message["content"]
    if messages and messages[0]["role"] == "system":
        messages[0]["content"] = _DATE_LINES.sub("", messages[0]["content"])
        return messages if messages[0]["content"] else messages[1:]
    return messages


_DATE_LINES = re.compile(
    r"\A(?:Environment: ipython\n)?(?:Tools: [^\n]*\n\n)?Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n\n"
)


def parse_reply(tokenizer: Tokenizer, tokens: Sequence[int]) -> Message:
    """The assistant's message in these tokens (without its header), up to the first stop token: text or tool calls."""
    stop = _find(tokens, tokenizer.stop_ids, 0)
    tokens = list(tokens[:stop])
    tag = tokenizer.special.get(PYTHON_TAG)
    if tag in tokens:
        place = tokens.index(tag)
        content, call = tokenizer.decode(tokens[:place]), tokenizer.decode(tokens[place + 1 :])
        return Message(role="assistant", content=content, tool_calls=toolcalls.read_tagged(call))
    text = tokenizer.decode(tokens)
    if calls := toolcalls.read_untagged(text):
        return Message(role="assistant", content="", tool_calls=calls)
    return Message(role="assistant", content=text)


def formatting_mask(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[bool]:
    """Which tokens are formatting, not content: BOS, headers with the blank line after them, terminators.

    DPO leaves them out of its loss.
    Source: Llama 3 paper section 4.1.4.
    """
    start_header, end_header = tokenizer.chat_token(START_HEADER), tokenizer.chat_token(END_HEADER)
    blank_line = tokenizer.encode("\n\n")
    ends = {tokenizer.bos_id, *tokenizer.stop_ids, tokenizer.pad_id}
    mask = [token in ends for token in tokens]
    position = 0
    while (start := _find(tokens, (start_header,), position)) is not None:
        close = _find(tokens, (end_header,), start)
        close = len(tokens) if close is None else close + 1
        if list(tokens[close : close + len(blank_line)]) == blank_line:
            close += len(blank_line)
        mask[start:close] = [True] * (min(close, len(tokens)) - start)
        position = close
    return mask


def _after_blank_line(tokenizer: Tokenizer, body: Sequence[int]) -> Sequence[int]:
    blank_line = tokenizer.encode("\n\n")
    if list(body[: len(blank_line)]) != blank_line:
        raise DataError("a message header is not followed by an empty line")
    return body[len(blank_line) :]


def _find(tokens: Sequence[int], wanted: Sequence[int], start: int) -> int | None:
    """The first index from `start` on with one of the wanted tokens."""
    return next((i for i in range(start, len(tokens)) if tokens[i] in wanted), None)
