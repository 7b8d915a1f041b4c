"""Chats for supervised fine-tuning: read in the common formats, rendered with their loss mask, packed whole.

A conversation is never cut: one that does not fit into a row is left out and counted. Every conversation is its own
document of a packed row, so none sees another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from herd.data.rows import read_rows
from herd.data.shards import Documents, in_memory
from herd.errors import DataError
from herd.log import say
from herd.tokenizer.chat import render, require_trained
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Message

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHAREGPT_ROLES |= {"tool": "ipython", "observation": "ipython"}
_PROMPTS, _ANSWERS = ("prompt", "instruction", "question"), ("completion", "response", "output", "answer")


def load_conversations(paths: Path | Sequence[Path], tokenizer: Tokenizer, row_tokens: int) -> dict[str, Documents]:
    """The conversations of JSONL or Parquet files as documents with a loss mask, by the rows' `source`.

    Raises:
        DataError: a row is no conversation, has nothing to learn from, or none fits into a row.
    """
    return pack_conversations(read_rows(paths), tokenizer, row_tokens)


def pack_conversations(
    rows: Iterable[tuple[str, dict[str, Any]]], tokenizer: Tokenizer, row_tokens: int
) -> dict[str, Documents]:
    """The same from rows in memory, each with where it came from (for error messages)."""
    rendered: dict[str, list[Any]] = {}
    too_long = 0
    for place, row in rows:
        try:
            conversation = require_trained(render(tokenizer, as_messages(row), tools=as_tools(row)))
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        if len(conversation.tokens) - 1 > row_tokens:
            too_long += 1
        else:
            rendered.setdefault(str(row.get("source") or "conversations"), []).append(conversation)
    if too_long:
        say(f"  {too_long} conversations are longer than a row of {row_tokens} tokens and were left out")
    if not rendered:
        why = (
            f"all {too_long} are longer than a row of {row_tokens} tokens; raise row_tokens" if too_long else "no rows"
        )
        raise DataError(f"no conversation to train on: {why}")
    return {
        source: in_memory(
            source,
            [conversation.tokens for conversation in conversations],
            trained=[conversation.mask for conversation in conversations],
            tokenizer=tokenizer.fingerprint,
        )
        for source, conversations in rendered.items()
    }


def as_messages(row: dict[str, Any]) -> list[Message]:
    """The messages of a row: `messages` as they are, ShareGPT's `conversations`, or a prompt and its answer.

    Raises:
        DataError: the row is none of these.
    """
    if row.get("messages") is not None:
        return _listed(row["messages"], "messages")
    if row.get("conversations") is not None:
        return [_from_sharegpt(turn) for turn in _listed(row["conversations"], "conversations")]
    prompt = next((row[name] for name in _PROMPTS if row.get(name)), None)
    answer = next((row[name] for name in _ANSWERS if row.get(name)), None)
    if isinstance(prompt, list) and isinstance(answer, list):
        return [*prompt, *answer]
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise DataError(
            "not a conversation: expected `messages` [{role, content}], `conversations` [{from, value}], or a prompt "
            f"({'/'.join(_PROMPTS)}) and its answer ({'/'.join(_ANSWERS)}); "
            f"the row has {', '.join(map(str, row)) or 'nothing'}"
        )
    system = [Message(role="system", content=row["system"])] if isinstance(row.get("system"), str) else []
    extra = row.get("input")
    user = f"{prompt}\n\n{extra}" if isinstance(extra, str) and extra else prompt
    return [*system, Message(role="user", content=user), Message(role="assistant", content=answer)]


def as_tools(row: dict[str, Any]) -> list[Any] | None:
    """The tools that a conversation offers: its `tools`, as a list or as the JSON of one.

    Raises:
        DataError: it is neither.
    """
    tools = row.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools or None
    except ValueError as error:
        raise DataError(f"`tools` is no JSON ({error})") from None
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"`tools` is {type(tools).__name__}, expected a list")
    return tools


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"`{name}` must be a list of messages, not empty")
    return value


def _from_sharegpt(turn: Any) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError("a turn of `conversations` must have `from` and `value`")
    role = _SHAREGPT_ROLES.get(str(turn.get("from")))
    if role is None:
        raise DataError(f"unknown speaker {turn.get('from')!r}; expected one of {', '.join(_SHAREGPT_ROLES)}")
    return Message(role=role, content=turn["value"])
