"""Tool calls in an answer that grows: text goes on at once, what may be a call is held back until it is known."""

from __future__ import annotations

from collections.abc import Sequence

from herd.tokenizer.toolcalls import may_become_call, read_tagged, read_untagged
from herd.types import ToolCall


class CallReader:
    """Sorts one answer into text and calls of the tools that were offered.

    Example: with the tool `f`, pushing "He" and "llo" lets them through; pushing '{"name": ' and
    '"f", "parameters": {}}' lets nothing through, and `finish` gives the call. What follows the token `<|python_tag|>`
    is a call wherever it stands. A call of a tool that nobody offered stays text.
    """

    def __init__(self, names: Sequence[str], *, one_call: bool = False) -> None:
        self._names, self._one_call = frozenset(names), one_call
        self._held, self._holds, self._tagged = "", True, False

    def push(self, text: str, *, tag: bool = False) -> str:
        """The text that is certain to be no call; `tag` says that the token `<|python_tag|>` came just before it."""
        if tag and not self._tagged:
            passed, self._held = self._held, text
            self._holds = self._tagged = True
            return passed
        if not self._holds:
            return text
        self._held += text
        if self._tagged or may_become_call(self._held):
            return ""
        held, self._held, self._holds = self._held, "", False
        return held

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, as text or as calls."""
        held, self._held = self._held, ""
        if not self._holds:
            return "", []
        calls = read_tagged(held) if self._tagged else read_untagged(held)
        if not calls or any(call["name"] not in self._names for call in calls):
            return held, []
        return "", calls[:1] if self._one_call else calls
