"""Parsing an assistant's reply as it is generated: text as soon as it is certain to be text, tool calls at the end."""

from __future__ import annotations

from herd.tokenizer import toolcalls
from herd.tokenizer.specials import PYTHON_TAG
from herd.tokenizer.stream import TextStream
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import ToolCall


class ReplyStream:
    """Takes the ids of a reply one by one.

    Together, the results of `push` and `finish` equal `herd.tokenizer.llama3.parse_reply` of the whole reply.

    Example:
        >>> stream = ReplyStream(tokenizer)
        >>> text = "".join(map(stream.push, ids))
        >>> rest, tool_calls = stream.finish()
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._stream = TextStream(tokenizer, skip_special=False)
        self._stops = frozenset(tokenizer.stop_ids)
        self._tag = tokenizer.special.get(PYTHON_TAG)
        self._held = ""  # text not yet returned, because it may be a call
        self._ended = self._tagged = self._is_text = False

    @property
    def in_call(self) -> bool:
        """Whether a tool call has certainly begun, with `<|python_tag|>`."""
        return self._tagged

    def push(self, token: int) -> str:
        """The text that has become certain with this token, possibly none."""
        if self._ended or token in self._stops:
            self._ended = True
            return ""
        if token == self._tag and not self._tagged:
            text, self._held = self._held + self._stream.flush(), ""
            self._tagged = True
            return text
        self._held += (piece := self._stream.push(token))
        if self._tagged:
            return ""
        self._is_text = self._is_text or (bool(piece) and not toolcalls.may_become_call(self._held))
        if not self._is_text:
            return ""
        text, self._held = self._held, ""
        return text

    def finish(self) -> tuple[str, list[ToolCall]]:
        """At the end of the reply: the rest of its text, and its tool calls."""
        self._ended = True
        text, self._held = self._held + self._stream.flush(), ""
        if self._tagged:
            return "", toolcalls.read_tagged(text)
        calls = [] if self._is_text else toolcalls.read_untagged(text)
        return ("", calls) if calls else (text, [])
