"""Llama 3's chat format: conversations to tokens with their loss mask, and back.

    <|begin_of_text|>
    <|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>      for every message
    <|start_header_id|>assistant<|end_header_id|>\\n\\n                      for the model to go on

Content is encoded apart from its header and as plain text, so no message can forge a turn.
Source: Llama 3 paper section 4.1.1; Meta's prompt format notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from herd.errors import DataError
from herd.tokenizer import toolcalls
from herd.tokenizer.specials import END_HEADER, PYTHON_TAG, START_HEADER
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Message

ROLES = ("system", "user", "assistant", "ipython")
DATE_LINES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
"""What Hugging Face's Llama 3.1 template puts before every system prompt."""


class Rendered(NamedTuple):
    """A conversation in tokens, and for each token whether it is trained on."""

    tokens: list[int]
    mask: list[bool]


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    generation_prompt: bool = False,
    style: str | None = None,
    tool_format: toolcalls.Format = "json",
) -> Rendered:
    """Tokens and loss mask of a conversation; the assistant's messages and what ends them are trained on.

    Styles: `meta` writes content as it is; `hf` strips it and always opens with the date lines, as Hugging Face's
    Llama 3.1 template does; None takes the checkpoint's own.

    Raises:
        DataError: an unknown role or a message that is not text.
    """
    style = style or tokenizer.chat_style
    messages = [_checked(message, number) for number, message in enumerate(messages)]
    if style == "hf":
        messages = _with_dates(messages)
    tokens, mask = [tokenizer.bos_id], [False]
    for number, message in enumerate(messages):
        header = _header(tokenizer, message["role"])
        body = _body(tokenizer, message, style, tool_format)
        follower = messages[number + 1]["role"] if number + 1 < len(messages) else None
        body.append(_terminator(tokenizer, message, body, follower))
        tokens += header + body
        mask += [False] * len(header) + [message["role"] == "assistant"] * len(body)
    if generation_prompt:
        header = _header(tokenizer, "assistant")
        tokens += header
        mask += [False] * len(header)
    return Rendered(tokens, mask)


def require_trained(rendered: Rendered) -> Rendered:
    """The same, if it is fit for training.

    Raises:
        DataError: nothing in it is trained on, or everything is.
    """
    if not any(rendered.mask):
        raise DataError("nothing in this conversation is trained on: it has no assistant message")
    if all(rendered.mask):
        raise DataError("everything in this conversation is trained on: its loss mask hides no prompt")
    return rendered


def _checked(message: Message, number: int) -> Message:
    role = message.get("role")
    role = "ipython" if role == "tool" else role
    if role not in ROLES:
        raise DataError(f"message {number}: role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"message {number}: content is {type(content).__name__}, expected text")
    calls = message.get("tool_calls") or []
    if calls and role != "assistant":
        raise DataError(
            f"message {number}: tool_calls stand in a message of role {role}; only the assistant calls tools"
        )
    checked = Message(role=role, content=content)
    if calls:
        checked["tool_calls"] = [toolcalls.checked(call, f"message {number}") for call in calls]
    return checked


def _with_dates(messages: list[Message]) -> list[Message]:
    """The date lines before the system prompt, which is made when there is none; all content stripped."""
    messages = [message | {"content": message["content"].strip()} for message in messages]
    system = ""
    if messages and messages[0]["role"] == "system":
        system = messages[0]["content"]
        messages = messages[1:]
    return [Message(role="system", content=DATE_LINES + system), *messages]


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    special = tokenizer.special
    return [special[START_HEADER], *tokenizer.encode(role), special[END_HEADER], *tokenizer.encode("\n\n")]


def _body(tokenizer: Tokenizer, message: Message, style: str, tool_format: toolcalls.Format) -> list[int]:
    tokens = tokenizer.encode(message["content"])
    if calls := message.get("tool_calls"):
        text, tagged = toolcalls.write(calls, "bare" if style == "hf" and tool_format == "json" else tool_format)
        if tagged:
            tokens.append(tokenizer.special[PYTHON_TAG])
        tokens += tokenizer.encode(text)
    return tokens


def _terminator(tokenizer: Tokenizer, message: Message, body: list[int], follower: str | None) -> int:
    """End of message where the same turn goes on (a tagged call, or another assistant message), else end of turn."""
    goes_on = follower == "assistant" or tokenizer.special.get(PYTHON_TAG) in body
    return tokenizer.eom_id if message["role"] == "assistant" and goes_on else tokenizer.eot_id


# ---- parse -----------------------------------------------------------------------------------------------------------


def parse(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Message]:
    """The messages of a rendered conversation; the last one may be cut before its end.

    A generation prompt at the end, with nothing after it, is no message.

    Raises:
        DataError: the tokens are not a conversation.
    """
    special = tokenizer.special
    start, end = special[START_HEADER], special[END_HEADER]
    position = 1 if tokens and tokens[0] == tokenizer.bos_id else 0
    messages: list[Message] = []
    while position < len(tokens):
        if tokens[position] != start:
            raise DataError(f"token {position} is {tokens[position]}, expected a message header ({start})")
        close = _find(tokens, (end,), position)
        if close is None:
            raise DataError(f"the message header at token {position} is not closed")
        role = tokenizer.decode(tokens[position + 1 : close])
        stop = _find(tokens, (tokenizer.eot_id, tokenizer.eom_id), close)
        stop = len(tokens) if stop is None else stop
        body = _after_blank_line(tokenizer, tokens[close + 1 : stop])
        if body or stop < len(tokens):
            messages.append(parse_reply(tokenizer, body) if role == "assistant" else _plain(tokenizer, role, body))
        position = stop + 1
    return messages


def parse_reply(tokenizer: Tokenizer, tokens: Sequence[int]) -> Message:
    """What the assistant said in these tokens (without its header), up to the first stop token: text or tool calls."""
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
    """Which tokens are form and not content: begin of text, headers with the blank line after them, terminators.

    DPO leaves them out of its loss.
    Source: Llama 3 paper section 4.1.4.
    """
    special = tokenizer.special
    blank_line = tokenizer.encode("\n\n")
    ends = {tokenizer.bos_id, *tokenizer.stop_ids, tokenizer.pad_id}
    mask = [token in ends for token in tokens]
    position = 0
    while (start := _find(tokens, (special[START_HEADER],), position)) is not None:
        close = _find(tokens, (special[END_HEADER],), start)
        close = len(tokens) if close is None else close + 1
        if list(tokens[close : close + len(blank_line)]) == blank_line:
            close += len(blank_line)
        mask[start:close] = [True] * (min(close, len(tokens)) - start)
        position = close
    return mask


def _plain(tokenizer: Tokenizer, role: str, body: Sequence[int]) -> Message:
    if role not in ROLES:
        raise DataError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    return Message(role=role, content=tokenizer.decode(body))


def _after_blank_line(tokenizer: Tokenizer, body: Sequence[int]) -> Sequence[int]:
    blank_line = tokenizer.encode("\n\n")
    if list(body[: len(blank_line)]) != blank_line:
        raise DataError("a message header is not followed by an empty line")
    return body[len(blank_line) :]


def _find(tokens: Sequence[int], wanted: Sequence[int], start: int) -> int | None:
    """The first place from `start` on that holds one of the wanted tokens."""
    return next((i for i in range(start, len(tokens)) if tokens[i] in wanted), None)
