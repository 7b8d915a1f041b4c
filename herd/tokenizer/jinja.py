"""Running a checkpoint's chat template: conversations to text, as in `transformers`.

Templates run in a separate process (`herd.tokenizer.jinja_child`), which is started for the first conversation, serves
all templates, and is killed if one takes too long.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from herd.errors import DataError
from herd.tokenizer import jinja_child

SECONDS = 20.0
"""Time limit of a template for one conversation."""

MAX_TEMPLATE_CHARS = 1 << 20
_START = "from herd.tokenizer.jinja_child import work; work()"
_DATE_FORMS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S")
_FREE = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode's noncharacters, which do not occur in text


class Written(NamedTuple):
    """A template's output, and the spans of it that are inside `{% generation %}`."""

    text: str
    generated: list[tuple[int, int]]


def write(
    template: str, variables: Mapping[str, Any], *, date: str | None = None, marks: tuple[str, str] | None = None
) -> Written:
    """Run a template with these variables; `date` is its current date (default: today).

    Raises:
        DataError: the template is not valid Jinja, refuses the conversation, fails, or takes too long.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise DataError(
            f"the chat template has {len(template):,} characters; at most {MAX_TEMPLATE_CHARS:,} are allowed"
        )
    now = None if date is None else as_date(date).isoformat()
    begin, end = marks or free_characters(variables, 2)
    asked = {"template": template, "variables": dict(variables), "now": now, "marks": (begin, end)}
    try:
        result = _process().ask(asked)
    except (TypeError, ValueError) as error:
        raise DataError(f"the conversation cannot be passed to the chat template: {error}") from None
    if "refused" in result:
        raise DataError(f"the chat template refuses: {result['refused']}")
    if "broken" in result:
        raise DataError(f"the chat template fails: {result['broken']}")
    return _without_marks(result["text"], begin, end)


def as_date(date: str) -> datetime:
    """Parse a date such as 26 Jul 2024 or 2024-07-26.

    Raises:
        DataError: it has another form.
    """
    for form in _DATE_FORMS:
        with contextlib.suppress(ValueError):
            return datetime.strptime(date, form)
    raise DataError(f"date {date!r}: expected the form 26 Jul 2024 or 2024-07-26")


def free_characters(value: Any, number: int) -> tuple[str, ...]:
    """Noncharacters that do not occur in a value.

    Raises:
        DataError: it contains nearly all of them.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    free = [mark for mark in _FREE if mark not in text][:number]
    if len(free) < number:
        raise DataError("the conversation contains all of Unicode's noncharacters U+FDD0 to U+FDEF: it is not text")
    return tuple(free)


def _without_marks(text: str, begin: str, end: str) -> Written:
    spans: list[tuple[int, int]] = []
    parts: list[str] = []
    size, opened = 0, None
    for part in _cut(text, (begin, end)):
        if part == begin:
            opened = size
        elif part == end:
            if opened is not None:
                spans.append((opened, size))
            opened = None
        else:
            parts.append(part)
            size += len(part)
    return Written("".join(parts), spans)


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    parts = [text]
    for mark in marks:
        parts = [piece for part in parts for piece in _around(part, mark)]
    return parts


def _around(text: str, mark: str) -> list[str]:
    pieces = text.split(mark)
    return [pieces[0], *(item for piece in pieces[1:] for item in (mark, piece))]


# ---- the process -----------------------------------------------------------------------------------------------------


class _Process:
    """The process that runs templates, one at a time."""

    def __init__(self) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ", "SYSTEMROOT") if name in os.environ}
        kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._child = subprocess.Popen([sys.executable, "-c", _START], stdin=-1, stdout=-1, env=kept)
        self._owner, self._one = os.getpid(), threading.Lock()
        self._stop = weakref.finalize(self, _end, self._child, self._owner)

    @property
    def usable(self) -> bool:
        """Whether it runs and belongs to this process (not to a parent that forked this one)."""
        return self._stop.alive and self._owner == os.getpid() and self._child.poll() is None

    def ask(self, asked: dict[str, Any]) -> dict[str, str]:
        """Send a request and wait for the answer.

        Raises:
            DataError: it takes too long, or the process ends.
        """
        content = json.dumps(asked).encode()
        with self._one:
            deadline = time.monotonic() + SECONDS
            try:
                assert self._child.stdin is not None
                self._child.stdin.write(struct.pack("<Q", len(content)) + content)
                self._child.stdin.flush()
                found = jinja_child.read_message(lambda size: self._read(size, deadline))
            except (OSError, ValueError):
                found = None
            if found is None:
                self._stop()
        if found is None:
            late = time.monotonic() >= deadline
            why = f"takes longer than {SECONDS:g} s" if late else "ended the process that ran it"
            raise DataError(f"the chat template fails: it {why}")
        return found

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._child.stdout is not None
        descriptor, parts = self._child.stdout.fileno(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(parts) < size:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    return b""
                if not (part := os.read(descriptor, min(size - len(parts), 1 << 20))):
                    return b""
                parts += part
        return bytes(parts)


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    child.kill()
    for stream in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()
    child.wait()


_shared: list[_Process] = []
_starting = threading.Lock()


def _process() -> _Process:
    with _starting:
        if not (_shared and _shared[0].usable):
            _shared[:] = [_Process()]
        return _shared[0]
