"""The server's guards at work: what is asked, what tools brought and what is answered, sentence by sentence.

A user's message that was flagged before, and is still in the history, is not shown to the model again; nor is what was
answered to it. So a conversation goes on after a refusal, and a forged history gains nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from herd.infer.engine import Input
from herd.safety.guard import Verdict
from herd.safety.opened import AnyGuard
from herd.safety.policy import Where
from herd.safety.shield import Finding
from herd.serve.turn import Refused, Turn
from herd.types import Message

_REMEMBERED = 10_000  # verdicts: a history comes again with every message
_TOGETHER = 4  # messages of a user that are also read as one
_CONTEXT = 800  # characters of an answer that are judged together with its newest sentence
_LONGEST_SENTENCE = 400  # characters that are held back at most
_SHORTEST = 24  # characters of a sentence that is judged by itself
_END = re.compile(r"[.!?。！？।…]+[\"'”’)\]]*(?=\s)|\n+")
WITHHELD = "[The result was withheld: a guard found something in it that it must not hold.]"
Tally = tuple[str, str, str, str, str]
"""Guard, place, outcome (passed, flagged; warned by Code Shield), category and owner of a key, as they are counted."""


class Watch:
    """One or several guards, what they found so far, and where that is written down."""

    def __init__(self, guards: Sequence[AnyGuard], log: Path | None = None) -> None:
        self.guards = list(guards)
        self.counts: Counter[Tally] = Counter()
        self._log, self._lock = log, threading.Lock()
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()

    # ---- a turn ------------------------------------------------------------------------------------------------------

    async def before(self, turn: Turn) -> Turn:
        """The turn without what was flagged earlier.

        Raises:
            Refused: what is asked now is flagged.
        """
        return await asyncio.to_thread(self._before, turn)

    def after(self, turn: Turn) -> Sentences:
        """The filter of one answer."""
        return Sentences(self, turn)

    def _before(self, turn: Turn) -> Turn:
        inputs: list[Input | list[int]] = []
        for item in turn.inputs:
            if isinstance(item, str):
                self.check(item, "input", turn)
                inputs.append(item)
            elif item and not isinstance(item[0], int):
                inputs.append(self._talk(list(item), turn))
            else:
                inputs.append(item)
        return turn if inputs == list(turn.inputs) else replace(turn, inputs=inputs)

    def _talk(self, messages: list[Message], turn: Turn) -> list[Message]:
        kept: list[Message] = []
        asked: list[str] = []
        answered = max((place for place, one in enumerate(messages) if one["role"] == "assistant"), default=-1)
        skip = False
        for place, message in enumerate(messages):
            role, text = message["role"], message.get("content") or ""
            where: Where | None = {"user": "input", "ipython": "tool", "tool": "tool"}.get(role)  # type: ignore[assignment]
            if role == "assistant" and skip:
                continue  # the answer to what is left out
            skip = False
            if where is None or not text:
                kept.append(message)
                continue
            if place > answered:
                self.check(text, where, turn)
            elif self._first_flagged(text, where, turn) is not None:
                if where == "tool":
                    kept.append(message | {"content": WITHHELD})
                skip = where == "input"
                continue
            kept.append(message)
            asked += [text] if where == "input" else []
        if len(asked) > 1:
            self._check_together(asked[-_TOGETHER:], turn)
        return kept

    # ---- verdicts ----------------------------------------------------------------------------------------------------

    def check(self, text: str, where: Where, turn: Turn) -> None:
        """Judge a text and write down what was found.

        Raises:
            Refused: it is flagged.
        """
        found = self._first_flagged(text, where, turn)
        if found is not None:
            guard, verdict = found
            self._note(guard, verdict, turn)
            raise _refused(guard, verdict)

    def _check_together(self, texts: Sequence[str], turn: Turn) -> None:
        for guard in self.guards:
            verdict = guard.judge_together(texts)
            if verdict is not None and verdict.flagged:
                self._note(guard, verdict, turn)
                raise _refused(guard, verdict)

    def _first_flagged(self, text: str, where: Where, turn: Turn) -> tuple[AnyGuard, Verdict] | None:
        for guard in self.guards:
            if not guard.enabled(where):
                continue
            verdict, is_new = self._verdict(guard, text, where)
            if verdict.flagged:
                return guard, verdict
            if is_new:
                self._count(guard, verdict, turn)
        return None

    def _verdict(self, guard: AnyGuard, text: str, where: Where) -> tuple[Verdict, bool]:
        """A verdict, and whether it was not remembered."""
        data = f"{self.guards.index(guard)} {where} {text}".encode("utf-8", "backslashreplace")
        key = blake2b(data, digest_size=16).digest()
        with self._lock:
            if known := self._known.get(key):
                self._known.move_to_end(key)
                return known, False
        verdict = guard.judge([text], where)[0]
        with self._lock:
            self._known[key] = verdict
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return verdict, True

    def moderated(
        self, text: str, where: Where, categories: Collection[str] | None, threshold: float | None, turn: Turn
    ) -> list[tuple[AnyGuard, Verdict]]:
        """What each guard says of a text sent to be judged; one that knows none of `categories` says nothing."""
        found = []
        for guard in self.guards:
            mine = None if categories is None else [one for one in categories if _knows(guard, one)]
            if mine == [] or not guard.enabled(where, mine):
                continue
            verdict = guard.judge([text], where, categories=mine, threshold=threshold)[0]
            self._note(guard, verdict, turn)
            found.append((guard, verdict))
        return found

    # ---- what is written down ----------------------------------------------------------------------------------------

    def _note(self, guard: AnyGuard, verdict: Verdict, turn: Turn) -> None:
        self._count(guard, verdict, turn)
        if self._log is None or not verdict.flagged:
            return
        self._write(told(guard, verdict), turn)

    def note_code(self, found: Sequence[Finding], turn: Turn) -> None:
        """Count and write down what Code Shield found in an answer or a call; of none that it passed."""
        worst = min((one.severity for one in found), default="")
        outcome = {"": "passed", "block": "flagged"}.get(worst, "warned")
        with self._lock:
            for cwe in sorted({one.cwe for one in found}) or [""]:
                self.counts["code shield", "output", outcome, cwe, turn.owner or ""] += 1
        if found and self._log is not None:
            self._write(
                {"guard": "code shield", "where": "output", "flagged": outcome == "flagged"}
                | {"categories": [one.cwe for one in found], "names": [one.rule for one in found]},
                turn,
            )

    def _write(self, what: dict[str, Any], turn: Turn) -> None:
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "id": turn.request, "owner": turn.owner}
        with self._lock, open(self._log or "", "a", encoding="utf-8", opener=_private) as file:
            file.write(json.dumps(entry | what) + "\n")

    def _count(self, guard: AnyGuard, verdict: Verdict, turn: Turn) -> None:
        category = verdict.categories[0] if verdict.flagged else ""
        outcome = "flagged" if verdict.flagged else "passed"
        with self._lock:
            self.counts[guard.policy.name, verdict.where, outcome, category, turn.owner or ""] += 1

    def tallies(self) -> Iterator[tuple[Tally, int]]:
        """What was counted so far."""
        with self._lock:
            yield from list(self.counts.items())


class Sentences:
    """The filter of one answer: text is held back until its sentence was judged, together with what came before it."""

    def __init__(self, watch: Watch, turn: Turn) -> None:
        self._watch, self._turn = watch, turn
        self._held = self._told = ""

    def push(self, text: str) -> str:
        """The sentences that have ended and pass."""
        self._held += text
        cut = max((hit.end() for hit in _END.finditer(self._held)), default=0)
        if cut < _SHORTEST:
            cut = self._held.rfind(" ") + 1 if len(self._held) > _LONGEST_SENTENCE else 0
            cut = cut or (len(self._held) if len(self._held) > 2 * _LONGEST_SENTENCE else 0)
        return self._passed(cut)

    def finish(self) -> str:
        """The rest, if it passes."""
        return self._passed(len(self._held))

    def _passed(self, cut: int) -> str:
        if not cut:
            return ""
        text, self._held = self._held[:cut], self._held[cut:]
        if text.strip():
            self._watch.check((self._told + text)[-_CONTEXT - len(text) :], "output", self._turn)
        self._told = (self._told + text)[-_CONTEXT:]
        return text


def told(guard: AnyGuard, verdict: Verdict) -> dict[str, Any]:
    """A verdict as clients and the log are told of it; no text is in it."""
    known = guard.policy.categories
    return {
        "guard": guard.policy.name,
        "where": verdict.where,
        "flagged": verdict.flagged,
        "categories": [*verdict.categories],
        "names": [known[code].name if code in known else code for code in verdict.categories],
        "probability": round(verdict.probability, 4),
        "threshold": round(verdict.threshold, 4),
        "reading": verdict.reading,
    }


def _refused(guard: AnyGuard, verdict: Verdict) -> Refused:
    return Refused(guard.policy.words(verdict.categories, verdict.where), told(guard, verdict))


def _knows(guard: AnyGuard, name: str) -> bool:
    known: Mapping[str, Any] = guard.policy.categories
    return any(name.lower() in (code.lower(), known[code].name.lower()) for code in guard.labels if code in known)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
