"""Code Shield in the server's turn: code that is answered, and code that tool calls hand over.

`warn` tells below each block of code what was found in it. `block` also ends an answer, or a call before it is run or
told, where a finding is one to block; the code is held back until its block has ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from herd.safety.shield import Finding, Shield
from herd.serve.turn import Refused, Turn
from herd.serve.watch import Watch

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})", re.M)
_TOLD = 5  # findings that are told of one block
_WIDEST = 80  # characters of a line of code that is shown


class CodeWatch:
    """A guard that scans code; what it finds is counted and written down by the watch."""

    def __init__(self, watch: Watch, mode: Literal["warn", "block"], shield: Shield | None = None) -> None:
        self.watch, self.mode, self.shield = watch, mode, shield or Shield()

    async def before(self, turn: Turn) -> Turn:
        """What is asked is not looked at."""
        return turn

    def after(self, turn: Turn) -> CodeFilter:
        """The filter of one answer."""
        return CodeFilter(self, turn)


class CodeFilter:
    """Scans the code of one answer, block by block, and its tool calls."""

    def __init__(self, owner: CodeWatch, turn: Turn) -> None:
        self._owner, self._turn = owner, turn
        self._text = ""  # since the last block's end
        self._sent = 0  # characters of it that went on
        self._line, self._fenced = 1, False

    def push(self, text: str) -> str:
        """What may go on: with `block` nothing of a block of code that has not ended."""
        self._text += text
        told = ""
        while (end := self._end()) is not None:
            told += self._told(end)
        until = len(self._text)
        if self._owner.mode == "block":
            opened = _FENCE.search(self._text)
            until = opened.start() if opened is not None else self._text.rfind("\n") + 1
            until = max(until, self._sent)
        told += self._text[self._sent : until]
        self._sent = until
        return told

    def finish(self) -> str:
        """The rest, where no fence closed it."""
        if not self._fenced or _FENCE.search(self._text):
            return self._told(len(self._text))
        return self._text[self._sent :]

    def call(self, name: str, arguments: str) -> None:
        """Look at a call that was written to its end.

        Raises:
            Refused: it is one to block.
        """
        self._judge(self._owner.shield.call(name, arguments), f"the call of {name}")

    def _end(self) -> int | None:
        """Where the first block ends, with its line."""
        marks = list(_FENCE.finditer(self._text))
        if not marks:
            return None
        closing = (mark for mark in marks[1:] if mark[1][:3] == marks[0][1][:3] and len(mark[1]) >= len(marks[0][1]))
        closed = next(closing, None)
        if closed is None:
            return None
        line = self._text.find("\n", closed.end())
        return line + 1 if line >= 0 else None

    def _told(self, end: int) -> str:
        part, self._text = self._text[:end], self._text[end:]
        found = [one for one in self._owner.shield.answer(part) if one.counts]
        self._fenced = self._fenced or bool(_FENCE.search(part))
        self._judge(found, "the answer's code", self._line - 1)
        told, self._sent = part[self._sent :], 0
        self._line += part.count("\n")
        return told + notes(found, self._line - part.count("\n") - 1, part)

    def _judge(self, found: Sequence[Finding], where: str, lines_before: int = 0) -> None:
        self._owner.watch.note_code([one for one in found if one.counts], self._turn)
        worst = [one for one in found if one.severity == "block"]
        if worst and self._owner.mode == "block":
            first = worst[0]
            words = f"Withheld: line {first.line + lines_before} of {where} is insecure ({first.cwe}). {first.says}"
            raise Refused(words, verdict(worst, lines_before))


def notes(found: Sequence[Finding], lines_before: int, part: str) -> str:
    """What is told below a block of code; nothing where nothing was found."""
    if not found:
        return ""
    lines = [
        f"> Code Shield: line {one.line + lines_before}, {one.cwe}: {one.says} `{one.text[:_WIDEST]}`"
        for one in found[:_TOLD]
    ]
    if len(found) > _TOLD:
        lines.append(f"> Code Shield: and {len(found) - _TOLD} more")
    return ("" if part.endswith("\n") else "\n") + "\n" + "\n>\n".join(lines) + "\n\n"


def verdict(found: Sequence[Finding], lines_before: int = 0) -> dict[str, Any]:
    """Findings as clients are told of them; no text is in it."""
    return {
        "guard": "code shield",
        "where": "output",
        "flagged": True,
        "categories": list(dict.fromkeys(one.cwe for one in found)),
        "names": list(dict.fromkeys(one.rule for one in found)),
        "lines": [one.line + lines_before for one in found],
    }
