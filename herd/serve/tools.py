"""Tool calls in an answer that grows: text goes on at once, a call as it is written.

Read are the forms that models write calls in: `{"name": ..., "parameters": {...}}` (or `arguments`, or null for none)
alone, in a list, one after another (between them `;`, `,` or white space), behind a sentence, in a fence, between
`<tool_call>` and `</tool_call>`; `<function=name>{...}</function>`; `[name(argument=1)]`; and whatever stands behind a
token that opens calls, such as `<|python_tag|>`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from herd.knowledge.citations import Citation
from herd.knowledge.index import Hit
from herd.serve.files import StoredFile
from herd.serve.scan import KEYS, ObjectScan, call_in
from herd.tokenizer.toolcalls import read_tagged, read_untagged


@dataclass(eq=False)
class Call:
    """A call of a tool, as far as it is written; `arguments` is JSON in the model's own words."""

    name: str
    arguments: str = ""
    is_whole: bool = False
    id: str = field(default_factory=lambda: "call_" + uuid.uuid4().hex[:24])


class Words(NamedTuple):
    """Text that is no call."""

    text: str


class Thought(NamedTuple):
    """What the model thinks before it answers."""

    text: str


class Begun(NamedTuple):
    """A call begins: its name is known."""

    call: Call


class Grown(NamedTuple):
    """A call's arguments go on."""

    call: Call
    text: str


class Ended(NamedTuple):
    """A call is over: whole, or cut."""

    call: Call


@dataclass(eq=False)
class Use:
    """A call that the server runs itself, and what came of it; `output` is None until then."""

    call: Call
    output: str | None = None
    failed: bool = False
    seconds: float = 0.0
    files: Sequence[StoredFile] = ()  # that it made


class Running(NamedTuple):
    """A tool of the server's begins to run."""

    use: Use


class Ran(NamedTuple):
    """It has ended."""

    use: Use


class Cited(NamedTuple):
    """What the documents say for an answer that is done: its last text's sentences, which begins at `start`."""

    start: int  # of the text, in characters of the whole answer
    citations: Sequence[Citation]
    passages: Sequence[Hit]
    read_out: str | None = None  # the sentence of the first passage that answers by itself


Part = Cited | Thought | Words | Begun | Grown | Ended | Running | Ran

_FENCE = re.compile(r"```(?:json|python|tool_call|tool_code|tool)?\s*")
_FENCES = ("```json", "```python", "```tool_call", "```tool_code")
_TAGS = ("<tool_call>", "<|python_tag|>")
_FUNCTION, _FUNCTION_OPEN = "<function=", re.compile(r"<function=([^}>]+)>\s*")
_PYTHON = re.compile(r"\[\s*([^\s()\[\]{}\"',=:#]*)\s*(\(|\Z)")
_BETWEEN = re.compile(r"(?:\s|;|,|\]|```|</tool_call>|</function>)*")
_CLOSERS = ("</tool_call>", "</function>", "```")
_OPENERS = re.compile(r"[{\[<`]")
_FIRST_KEY = re.compile(r'\{\s*"([^"]*)')

_Found = tuple[Literal["object", "function", "python"], int, str] | Literal["maybe"] | None


class CallReader:
    """Sorts one answer into text and calls of the tools that were offered; a call of any other tool stays text.

    With `eager`, a call is handed on as it is written: once its name and the beginning of its arguments are there, it
    is a call, whatever follows. Else only when it is whole, or cut by the longest answer; broken ones are text then.
    With `must_call`, nothing is text: the answer was held to be a call. `one_call` keeps the first.
    With `typed`, only what begins with its `type` is a call.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        eager: bool = False,
        one_call: bool = False,
        must_call: bool = False,
        typed: bool = False,
    ) -> None:
        self._names, self._eager = frozenset(names), eager
        self._one_call, self._must_call, self._typed = one_call, must_call, typed
        self._held, self._mode = "", "start"  # start, text, between, object, skip, rest, tagged
        self._scan: ObjectScan | None = None
        self._opener = ""  # what stood before the object that is scanned
        self._call: Call | None = None
        self._sent, self._num_calls = 0, 0
        self._parts: list[Part] = []

    def push(self, text: str, *, tag: bool = False) -> list[Part]:
        """What is certain by now; `tag` says that a token which opens calls came just before this text."""
        if tag:
            self._close(cut=False)
            self._held, self._mode = text, "tagged"
        else:
            self._held += text
        while self._held and getattr(self, f"_{self._mode}")():
            pass
        return self._taken()

    def finish(self, *, cut: bool = False) -> list[Part]:
        """What was held back; `cut` says that the answer was as long as it may be."""
        self._close(cut=cut)
        return self._taken()

    def _taken(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # ---- where the answer stands: each does what it can, and says whether to look again ------------------------------

    def _start(self) -> bool:
        blank = len(self._held) - len(self._held.lstrip())
        if blank == len(self._held):
            return False
        return self._open(blank, otherwise="text", at_start=True)

    def _text(self) -> bool:
        match = _OPENERS.search(self._held)
        if match is None:
            self._say(self._held)
            self._held = ""
            return False
        self._say(self._held[: match.start()])
        self._held = self._held[match.start() :]
        return self._open(0, otherwise="text")

    def _between(self) -> bool:
        match = _BETWEEN.match(self._held)
        rest = self._held[match.end() :] if match else self._held
        if not rest or any(closer.startswith(rest) for closer in _CLOSERS):
            return False
        self._held = rest
        return self._open(0, otherwise="text", at_start=True)

    def _tagged(self) -> bool:
        blank = len(self._held) - len(self._held.lstrip())
        if blank == len(self._held):
            return False
        return self._open(blank, otherwise="rest", at_start=True)

    def _rest(self) -> bool:
        return False

    def _object(self) -> bool:
        scan = self._scan
        assert scan is not None
        self._held = scan.feed(self._held)
        if self._call is None and (scan.is_none or (self._typed and scan.first_key not in ("", "type"))):
            self._reject(scan)
            return bool(self._held)
        if self._eager and self._call is None and scan.name is not None and scan.has_arguments:
            self._begin(scan.name)
        self._grow(scan)
        if not scan.closed:
            return False
        self._end_object(scan)
        return bool(self._held)

    def _skip(self) -> bool:
        """Text that is an object, but no call: nothing within it is one."""
        assert self._scan is not None
        rest = self._scan.feed(self._held)
        self._say(self._held[: len(self._held) - len(rest)])
        self._held = rest
        if self._scan.closed:
            self._mode = "text"
        return self._scan.closed and bool(rest)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _open(self, start: int, *, otherwise: str, at_start: bool = False) -> bool:
        """Look whether a call opens at a place of what is held; what is none is passed on, or kept to be read whole."""
        found = self._opening(self._held, start, at_start)
        if found == "maybe":
            return False
        if found is None:
            self._mode = otherwise
            if otherwise == "text":
                self._say(self._held[: start + 1])
                self._held = self._held[start + 1 :]
            return otherwise == "text" and bool(self._held)
        kind, place, name = found
        if kind == "python":
            self._mode = "rest"
            return False
        self._opener, self._held = self._held[:place], self._held[place:]
        self._scan = ObjectScan(self._names, name=name if kind == "function" else None)
        self._call, self._sent, self._mode = None, 0, "object"
        return True

    def _opening(self, text: str, at: int, at_start: bool) -> _Found:
        """The call that opens at a place, by its form and where its object begins; whether there may be one yet."""
        if text.startswith("```", at):
            fence = _FENCE.match(text, at)
            at = fence.end() if fence else at
            if at == len(text) or any(word.startswith(text[at - 3 :]) for word in _FENCES):
                return "maybe"
            at_start = True
        elif at < len(text) and "```".startswith(text[at:]):
            return "maybe"
        for tag in _TAGS:
            if text.startswith(tag, at):
                at += len(tag)
                at += len(text[at:]) - len(text[at:].lstrip())
            elif at < len(text) and tag.startswith(text[at:]):
                return "maybe"
        if at == len(text):
            return "maybe"
        if text[at] == "[":
            inner = at + 1 + len(text[at + 1 :]) - len(text[at + 1 :].lstrip())
            if inner == len(text):
                return "maybe"
            if text[inner] != "{":
                return self._python_opening(text, at) if at_start else None
            at = inner
        if text[at] == "{":
            key = _FIRST_KEY.match(text, at)
            if key is None:  # no JSON, or empty
                return "maybe" if not text[at + 1 :].strip() else None
            if key.end() == len(text) and any(name.startswith(key[1]) for name in KEYS):
                return "maybe"
            return "object", at, ""
        if _FUNCTION.startswith(text[at:]):
            return "maybe"
        if text.startswith(_FUNCTION, at):
            match = _FUNCTION_OPEN.match(text, at)
            if match is None:
                given = text[at + len(_FUNCTION) :]
                return "maybe" if any(name.startswith(given) for name in self._names) else None
            if match[1] not in self._names:
                return None
            if match.end() == len(text):
                return "maybe"
            return ("function", match.end(), match[1]) if text[match.end()] == "{" else None
        return None

    def _python_opening(self, text: str, at: int) -> _Found:
        match = _PYTHON.match(text, at)
        if match is None:
            return None
        if match[2]:
            return ("python", at, "") if match[1] in self._names else None
        return "maybe" if any(name.startswith(match[1]) for name in self._names) else None

    def _begin(self, name: str) -> None:
        self._call = Call(name)
        self._num_calls += 1
        if not self._is_hidden:
            self._parts.append(Begun(self._call))

    def _grow(self, scan: ObjectScan) -> None:
        if self._call is None:
            return
        text = scan.arguments()
        if len(text) > self._sent:
            new, self._sent = text[self._sent :], len(text)
            self._add(new)

    def _add(self, text: str) -> None:
        assert self._call is not None
        self._call.arguments += text
        if not self._is_hidden:
            self._parts.append(Grown(self._call, text))

    def _end_object(self, scan: ObjectScan) -> None:
        found = call_in(scan)
        if self._call is None:
            if found is None or found[0] not in self._names:
                self._say(self._opener + scan.text)
                self._mode = "text"
                return
            self._begin(found[0])
            self._add(found[1])
        self._end(is_whole=found is not None)
        self._mode = "between"

    def _end(self, *, is_whole: bool) -> None:
        assert self._call is not None
        self._call.is_whole = is_whole
        if not self._is_hidden:
            self._parts.append(Ended(self._call))
        self._call = None

    def _reject(self, scan: ObjectScan) -> None:
        """No call after all: what was held is text, and so is the rest of the object."""
        self._say(self._opener + scan.text)
        self._mode = "text" if scan.closed else "skip"

    @property
    def _is_hidden(self) -> bool:
        return self._one_call and self._num_calls > 1

    def _say(self, text: str) -> None:
        if not text or self._must_call:
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(last, Words):
            self._parts.pop()
            text = last.text + text
        self._parts.append(Words(text))

    def _close(self, *, cut: bool) -> None:
        held, self._held = self._held, ""
        if self._mode == "object" and self._scan is not None:
            scan = self._scan
            if self._call is None and cut and scan.name is not None and scan.has_arguments:
                self._begin(scan.name)
                self._grow(scan)
            if self._call is None:
                self._say(self._opener + scan.text)
            else:
                self._end(is_whole=False)
        elif self._mode in ("rest", "tagged"):
            self._close_whole(held)
        elif self._mode != "between":
            self._say(held)
        self._mode = "text"

    def _close_whole(self, held: str) -> None:
        """What is read only once it is all there: Python's calls, searches, code."""
        text = _FENCE.sub("", held.strip()).removesuffix("```").strip() if held.lstrip().startswith("```") else held
        calls = read_untagged(text) if self._mode == "rest" and "[" in text else []
        calls = calls or (read_tagged(held) if held.strip() else [])
        if not calls or any(call["name"] not in self._names for call in calls):
            self._say(held)
            return
        for call in calls:
            self._begin(call["name"])
            self._add(json.dumps(call["arguments"], ensure_ascii=False))
            self._end(is_whole=True)
