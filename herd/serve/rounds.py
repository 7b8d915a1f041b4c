"""The rounds of one answer: it calls tools that the server runs, reads what came of them, and goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from herd.infer.engine import Engine
from herd.infer.inputs import Input
from herd.knowledge.grounding import Found, Library, fitting, grounded
from herd.serve.errors import ApiError
from herd.serve.files import MADE, FileStore, StoredFile
from herd.serve.prompts import is_ids
from herd.serve.speech import Speech
from herd.serve.tools import Part, Ran, Use
from herd.serve.turn import Budget, Guard, Inspector, Refused, Tool, Turn
from herd.toolbox.errand import Errand, Failed
from herd.types import Conversation, Message, ToolCall

_log = logging.getLogger("herd.serve")
USED_UP = "not run: the budget of {} calls is used up; answer with what is known, without calling anything"


class Rounds:
    """What one answer has done with the server's own tools, and what it still may."""

    def __init__(
        self,
        tools: Mapping[str, Tool],
        budget: Budget,
        guards: Sequence[Guard],
        talk: Conversation,
        turn: Turn,
        store: FileStore,
    ) -> None:
        self.talk: Conversation = list(talk)
        self.errand = Errand(turn.files)
        self._store, self._owner, max_calls = store, turn.owner or "anyone", turn.max_calls
        self._tools, self._budget = tools, budget
        self._inspectors = [guard for guard in guards if isinstance(guard, Inspector)]
        self._most = budget.calls if max_calls is None else min(max_calls, budget.calls)
        self._left, self._was_told = self._most, False
        self._files: dict[str, bytes] = {}

    async def run(self, speech: Speech, tell: Callable[[list[Part]], None]) -> bool:
        """Run what an answer calls and add it to the talk; false where that was the end of it.

        The answer ends where a guard ended it, and where it calls on after it was told that its budget is used up.
        """
        uses = [Use(call) for call in speech.own_calls]
        said = speech.round_text
        tell(await asyncio.to_thread(speech.begin_uses, uses))  # guards judge what they held back
        if speech.finish_reason is not None:
            return False
        allowed = uses[: self._left]
        self._left -= len(allowed)
        for use in uses[len(allowed) :]:
            self._end(use, USED_UP.format(self._most), True, tell)
        await asyncio.gather(*(self._one(use, tell) for use in allowed))
        if not allowed and self._was_told:
            return False
        self._was_told = self._was_told or len(allowed) < len(uses)
        calls = [ToolCall(name=use.call.name, arguments=json.loads(use.call.arguments)) for use in uses]
        self.talk.append(Message(role="assistant", content=said, tool_calls=calls))
        self.talk += [Message(role="ipython", content=use.output or "") for use in uses]
        return True

    async def _one(self, use: Use, tell: Callable[[list[Part]], None]) -> None:
        began, seconds = time.monotonic(), self._budget.seconds
        arguments: dict[str, Any] = json.loads(use.call.arguments)
        failed = True
        try:
            async with asyncio.timeout(seconds):
                text, failed = await self._tools[use.call.name].call(arguments, self.errand), False
        except TimeoutError:
            text = f"took longer than {seconds:g} s and was ended"
        except Failed as error:
            text = str(error)
        except Exception as error:
            _log.exception("the tool %s failed", use.call.name)
            text = f"{type(error).__name__}: {error}"
        if len(text) > self._budget.characters:
            text = f"{text[: self._budget.characters]}\n[cut: {self._budget.characters:,} of {len(text):,} characters]"
        try:
            for guard in self._inspectors:
                text = await guard.data(text, use.call.name)
        except Refused as refusal:
            text, failed = f"withheld: {refusal}", True
        use.seconds = time.monotonic() - began
        made = {name: data for name, data in self.errand.files.items() if self._files.get(name) != data}
        self._files |= made
        use.files, left = await asyncio.to_thread(self._kept, made)
        self._end(use, "\n".join([text, *left]), failed, tell)

    def _kept(self, made: Mapping[str, bytes]) -> tuple[list[StoredFile], list[str]]:
        """The files as they are kept for whoever asked, and a line for each that is not."""
        kept, left = [], []
        for name in sorted(made):
            try:
                kept.append(self._store.put(self._owner, name, made[name], MADE))
            except ApiError as error:
                left.append(f"file left out: {name} ({error})")
        return kept, left

    def _end(self, use: Use, text: str, failed: bool, tell: Callable[[list[Part]], None]) -> None:
        use.output, use.failed = text, failed
        tell([Ran(use)])

    def close(self) -> None:
        """The answer is over."""
        self.errand.close()


def with_own_tools(turn: Turn, tools: Mapping[str, Tool]) -> Turn:
    """The turn with the server's own tools, in conversations; the client's come first where names are the same.

    Raises:
        ApiError: 400, where one is asked for that is not there.
    """
    if missing := next((name for name in turn.own or () if name not in tools), None):
        there = ", ".join(tools) or "none"
        raise ApiError(400, f"This server runs no tool {missing!r}; it runs: {there}.", param="server_tools")
    names = own_names(turn, tools)
    if not names or is_ids(turn.inputs[0]) or isinstance(turn.inputs[0], str):
        return turn
    return replace(
        turn, tools=[*turn.tools, *({"type": "function", "function": dict(tools[n].function)} for n in names)]
    )


def own_names(turn: Turn, tools: Mapping[str, Tool]) -> list[str]:
    """The server's own tools that may be called; none where the answer has to have a form, which a call would not."""
    if turn.params.json_schema is not None:
        return []
    functions = [tool["function"] for tool in turn.tools]
    theirs = {f["name"] for f in functions if f["name"] not in tools or f != dict(tools[f["name"]].function)}
    return [name for name in tools if name not in theirs and (turn.own is None or name in turn.own)]


async def with_documents(
    turn: Turn, library: Library | None, guards: Sequence[Guard], engine: Engine, *, default: bool
) -> tuple[Turn, Found | None]:
    """The turn with the passages that the documents have on its question, and these; None where it does without.

    Raises:
        ApiError: 400, where documents are asked for that are not there.
        Refused: a guard lets a passage not through.
    """
    (first, *_) = turn.inputs
    if not (default if turn.documents is None else turn.documents) or is_ids(first) or isinstance(first, str):
        return turn, None
    if library is None:
        raise ApiError(400, "This server has no documents (start it with documents=INDEX).", param="documents")
    talk = cast("list[Message]", first)
    found = await asyncio.to_thread(library.find, talk)
    tokens = engine.tokenizer
    hits = fitting(found.passages, engine.max_context // 2, lambda text: len(tokens.encode(text)))
    inspectors = [guard for guard in guards if isinstance(guard, Inspector)]
    for number, hit in enumerate(hits):
        for guard in inspectors:
            hits[number] = replace(hit, text=await guard.data(hits[number].text, "documents"))
    found = replace(found, passages=hits)
    return (replace(turn, inputs=[grounded(talk, hits)]) if hits and not found.beside else turn), found


async def guarded(guards: Sequence[Guard], engine: Engine, turn: Turn) -> Turn:
    """The turn as the guards let it go on; they see token ids as the text that these are.

    Raises:
        Refused: one does not.
    """
    ids = any(map(is_ids, turn.inputs))
    seen = replace(turn, inputs=[_as_text(engine, item) for item in turn.inputs]) if ids else turn
    passed = seen
    for guard in guards:
        passed = await guard.before(passed)
    return turn if passed is seen else passed


def _as_text(engine: Engine, item: Input | list[int]) -> Input:
    return engine.tokenizer.decode(item) if is_ids(item) else cast(Input, item)
