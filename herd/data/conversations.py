"""Chats for supervised fine-tuning: read in the common formats, rendered with their loss mask, packed whole.

One that does not fit into a row is left out and counted, or loses its end where that is wished. Every conversation is
its own document of a packed row, so none sees another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from herd.data.rows import RowSettings, read_rows
from herd.data.shapes import talks_of
from herd.data.shards import Documents, in_memory
from herd.data.split import kept_aside
from herd.data.talks import Notes, Talk
from herd.errors import DataError
from herd.tokenizer.chat import own_style, render, require_trained, tells_tools
from herd.tokenizer.llama3 import Rendered, Style
from herd.tokenizer.tokenizer import Tokenizer

_OPENINGS = re.compile(r"<tool_call>|<tool_response>|<functioncall>|\[TOOL_CALLS\]|<\|python_tag\|>|<think>")
"""What opens calls and thoughts in vocabularies that have tokens for these."""


class Conversations(NamedTuple):
    """Conversations as documents with a loss mask, by source: for training, for validation, and counts of those left
    out."""

    learned: dict[str, Documents]
    aside: dict[str, Documents]
    left_out: Counter[str]


def load_conversations(paths: Path | Sequence[Path], tokenizer: Tokenizer, row_tokens: int) -> dict[str, Documents]:
    """The conversations of JSONL or Parquet files as documents with a loss mask, by the rows' `source`.

    Raises:
        DataError: a row is no conversation, has nothing to learn from, or none fits into a row.
    """
    return pack_conversations(read_rows(paths), tokenizer, row_tokens)


def split_conversations(
    paths: Path | Sequence[Path], tokenizer: Tokenizer, longest: int, share: float, options: RowSettings
) -> Conversations:
    """The same, with about this share (0 to 1) of the groups (`group`, `name`, or the first question) for validation.

    Raises:
        DataError: as `load_conversations`, or `share` leaves nothing to learn from.
    """
    rendered, notes = render_rows(read_rows(paths, options), tokenizer, longest, options.too_long)
    aside = kept_aside([one.group for one in rendered], share * len(rendered), "validation")
    if share and not any(aside):
        raise DataError(f"validation.share={share}: all {len(rendered)} conversations begin alike, none is kept aside")
    parts = [[one for one, off in zip(rendered, aside, strict=True) if off is wish] for wish in (False, True)]
    learned, kept = (_by_source(part, tokenizer) for part in parts)
    return Conversations(learned, kept, notes.left_out)


def pack_conversations(
    rows: Iterable[tuple[str, dict[str, Any]]], tokenizer: Tokenizer, row_tokens: int
) -> dict[str, Documents]:
    """The same from rows in memory, each with its place for error messages."""
    return _by_source(render_rows(rows, tokenizer, row_tokens)[0], tokenizer)


class Told(NamedTuple):
    """A conversation of a row, rendered."""

    rendered: Rendered
    source: str
    group: str  # what a split must not tear apart


def render_rows(
    rows: Iterable[tuple[str, dict[str, Any]]],
    tokenizer: Tokenizer,
    longest: int,
    too_long: Literal["leave_out", "cut", "refuse"] = "leave_out",
) -> tuple[list[Told], Notes]:
    """Every conversation of at most `longest` tokens, and counts of those left out, which are printed.

    Raises:
        DataError: a row is no conversation, has nothing to learn from or is too long and that is refused; none is left.
    """
    found, notes = [], Notes()
    for place, row in rows:
        try:
            talks = talks_of(row, notes)
            conversations = [fitted(render_talk(tokenizer, talk, notes), longest, too_long, notes) for talk in talks]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        source = str(row.get("source") or "conversations")
        for talk, conversation in zip(talks, conversations, strict=True):
            if conversation is not None:
                found.append(Told(conversation, source, group_of(row, talk)))
    notes.tell()
    if not found:
        why = ", ".join(f"{what} ({count:,})" for what, count in notes.left_out.items()) or "no rows"
        more = "; raise batch.row_tokens, or cut them: rows.too_long=cut" if "longer than" in why else ""
        raise DataError(
            f"no conversation to train on: left out are {why}{more}"
            if notes.left_out
            else "no conversation to train on: no rows"
        )
    return found, notes


def fitted(rendered: Rendered, longest: int, too_long: str, notes: Notes) -> Rendered | None:
    """The conversation if it has at most `longest` input tokens, else its beginning or None, according to `too_long`.

    Raises:
        DataError: it is longer, and that is refused.
    """
    if len(rendered.tokens) - 1 <= longest:
        return rendered
    if too_long == "refuse":
        raise DataError(f"has {len(rendered.tokens):,} tokens, and {longest:,} is the most (rows.too_long=refuse)")
    cut = Rendered(rendered.tokens[: longest + 1], rendered.mask[: longest + 1])
    if too_long == "leave_out" or not any(cut.mask):
        notes.left_out[f"longer than {longest:,} tokens"] += 1
        return None
    notes.changed[f"cut to {longest:,} tokens"] += 1
    return cut


def group_of(row: Mapping[str, Any], talk: Talk) -> str:
    """The group of a row: its `group` or `name`, or its first question."""
    asked = (message.get("content") for message in talk.messages if message["role"] == "user")
    return str(row.get("group") or row.get("name") or next(asked, "") or talk.messages[0].get("content"))


def _by_source(conversations: Iterable[Told], tokenizer: Tokenizer) -> dict[str, Documents]:
    rendered: dict[str, list[Rendered]] = {}
    for one in conversations:
        rendered.setdefault(one.source, []).append(one.rendered)
    return {source: documents_of(source, several, tokenizer) for source, several in rendered.items()}


def documents_of(source: str, rendered: Sequence[Rendered], tokenizer: Tokenizer) -> Documents:
    """Conversations as documents with a loss mask."""
    return in_memory(
        source,
        [conversation.tokens for conversation in rendered],
        trained=[conversation.mask for conversation in rendered],
        tokenizer=tokenizer.fingerprint,
    )


def render_talk(tokenizer: Tokenizer, talk: Talk, notes: Notes, *, style: Style | None = None) -> Rendered:
    """Tokens and loss mask of a conversation; messages that the row excludes have no loss.

    Raises:
        DataError: the template refuses it, nothing in it is learned, or its messages cannot be told apart in it.
    """
    count_unwritten(tokenizer, talk, notes)
    rendered = require_trained(render(tokenizer, talk.messages, style=style, tools=talk.tools))
    return rendered if all(talk.trained) else Rendered(rendered.tokens, switched(rendered.mask, talk.trained))


def switched(mask: Sequence[bool], trained: Sequence[bool]) -> list[bool]:
    """The loss mask restricted to those of the assistant's messages that are trained on.

    Raises:
        DataError: the mask has another number of stretches than there are messages.
    """
    stretches = [(on, len(list(run))) for on, run in groupby(mask)]
    if sum(on for on, _ in stretches) != len(trained):
        raise DataError("the chat template joins the assistant's messages, so that none can be switched off alone")
    switches = iter(trained)
    return [on for on, length in ((on and next(switches), length) for on, length in stretches) for _ in range(length)]


def count_special(tokenizer: Tokenizer, text: str, notes: Notes) -> None:
    """Count the strings that look like special tokens or tool calls and are encoded as ordinary text."""
    if not text or ("<" not in text and "[" not in text):
        return
    found = set(_OPENINGS.findall(text)) - tokenizer.visible
    if tokenizer.special_strings:
        found |= {hit[0] for hit in tokenizer.special_strings.finditer(text)}
    for name in found:
        notes.changed[f"texts with `{name}`, kept as text and not as a token"] += 1


def count_unwritten(tokenizer: Tokenizer, talk: Talk, notes: Notes) -> None:
    """Count the tools, and what messages say beside their content, that the checkpoint's template does not write; and
    special strings in messages."""
    written = (tokenizer.chat_template or "") if own_style(tokenizer) is None else ""
    if talk.tools and not tells_tools(tokenizer):
        notes.unread["`tools`, which the chat template passes over"] += 1
    for message in talk.messages:
        count_special(tokenizer, message.get("content") or "", notes)
        if message["role"] not in ("system", "user", "assistant", "ipython", "tool"):
            notes.changed[f"messages of `{message['role']}`, a role that Herd does not know, written as it stands"] += 1
        for key in ("reasoning_content", "name"):
            if key in message and key not in written and not (key == "name" and message["role"] == "ipython"):
                notes.unread[f"`{key}` of messages"] += 1
