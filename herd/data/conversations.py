"""Chats for supervised fine-tuning: read in the common formats, rendered with their loss mask, packed whole.

A conversation is never cut: one that does not fit into a row is left out and counted. Every conversation is its own
document of a packed row, so none sees another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from herd.data.rows import read_rows
from herd.data.shapes import talks_of
from herd.data.shards import Documents, in_memory
from herd.data.talks import Notes, Talk
from herd.errors import DataError
from herd.log import say
from herd.tokenizer.chat import own_style, render, require_trained, tells_tools
from herd.tokenizer.llama3 import Rendered, Style
from herd.tokenizer.tokenizer import Tokenizer


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
    too_long, notes = 0, Notes()
    for place, row in rows:
        try:
            conversations = [render_talk(tokenizer, talk, notes) for talk in talks_of(row, notes)]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        for conversation in conversations:
            if len(conversation.tokens) - 1 > row_tokens:
                too_long += 1
            else:
                rendered.setdefault(str(row.get("source") or "conversations"), []).append(conversation)
    notes.tell()
    if too_long:
        say(f"  {too_long} conversations are longer than a row of {row_tokens} tokens and were left out")
    if not rendered:
        why = (
            f"{too_long} are longer than a row of {row_tokens} tokens; raise row_tokens"
            if too_long
            else f"{', '.join(notes.left_out)} and nothing else"
            if notes.left_out
            else "no rows"
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


def render_talk(tokenizer: Tokenizer, talk: Talk, notes: Notes, *, style: Style | None = None) -> Rendered:
    """Tokens and loss mask of a conversation; what its rows switch off is not learned.

    Raises:
        DataError: the template refuses it, nothing in it is learned, or its messages cannot be told apart in it.
    """
    _count_unwritten(tokenizer, talk, notes)
    rendered = require_trained(render(tokenizer, talk.messages, style=style, tools=talk.tools))
    return rendered if all(talk.trained) else Rendered(rendered.tokens, switched(rendered.mask, talk.trained))


def switched(mask: Sequence[bool], trained: Sequence[bool]) -> list[bool]:
    """The loss mask with only those of the assistant's messages that are to be learned.

    Raises:
        DataError: the mask has another number of stretches than there are messages.
    """
    stretches = [(on, len(list(run))) for on, run in groupby(mask)]
    if sum(on for on, _ in stretches) != len(trained):
        raise DataError("the chat template joins the assistant's messages, so that none can be switched off alone")
    switches = iter(trained)
    return [on for on, length in ((on and next(switches), length) for on, length in stretches) for _ in range(length)]


def _count_unwritten(tokenizer: Tokenizer, talk: Talk, notes: Notes) -> None:
    """Count the tools, and what messages say beside their content, that the checkpoint's template does not write."""
    written = (tokenizer.chat_template or "") if own_style(tokenizer) is None else ""
    if talk.tools and not tells_tools(tokenizer):
        notes.unread["`tools`, which the chat template passes over"] += 1
    for message in talk.messages:
        for key in ("reasoning_content", "name"):
            if key in message and key not in written and not (key == "name" and message["role"] == "ipython"):
                notes.unread[f"`{key}` of messages"] += 1
