"""What is known of each request afterwards: one line in the log, and the figures behind `/metrics`.

What people wrote and what was answered is in neither, unless the log is told to keep it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.serve.connections import LINES_PER_SECOND, Sparing
from herd.serve.errors import speaks_anthropic
from herd.serve.limits import Allowances
from herd.serve.metrics import Metrics
from herd.serve.record import RequestRecord
from herd.serve.tracing import Tracing

Form = Literal["text", "json", "off"]

_QUIET_PATHS = ("/health", "/metrics")  # asked every few seconds by machines


class Journal:
    """Where finished requests are written down."""

    def __init__(self, form: Form = "off", *, with_text: bool = False, stream: TextIO | None = None) -> None:
        self.form, self.with_text, self._stream = form, with_text, stream
        self._refusals = Sparing(LINES_PER_SECOND)  # strangers can make as many as they like

    def write(self, record: RequestRecord) -> None:
        """One line for a request."""
        if self.form == "off" or (record.path in _QUIET_PATHS and record.status == 200):
            return
        left_out = self._refusals.take() if record.model is None and record.status >= 400 else 0
        if left_out is None:
            return
        line = self._json(record, left_out) if self.form == "json" else self._text(record, left_out)
        with suppress(
            OSError
        ):  # nobody reads the log any more (a closed terminal, a pipe): no reason to fail a request
            print(line, file=self._stream or sys.stderr, flush=True)

    def _json(self, record: RequestRecord, left_out: int) -> str:
        entry: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "id": record.id}
        for name in ("path", "status", "owner", "model", "prompt_tokens", "completion_tokens", "finish", "error"):
            entry[name] = getattr(record, name)
        entry |= {"field": _name(record.field)} if record.field else {}
        entry |= {"ignored": [*map(_name, record.unheeded)]} if record.unheeded else {}
        entry["first_seconds"] = record.first_seconds and round(record.first_seconds, 4)
        entry["seconds"] = round(record.seconds, 4)
        if left_out:
            entry["left_out"] = left_out
        if self.with_text:
            entry |= {"asked": record.asked, "answered": record.answered}
        return json.dumps(entry, ensure_ascii=False)

    def _text(self, record: RequestRecord, left_out: int) -> str:
        path = record.path.encode("unicode_escape").decode()  # a path may hold line breaks, a log line may not
        words = [datetime.now().strftime("%H:%M:%S"), str(record.status), path]
        if record.model:
            words.append(record.model)
        if record.prompt_tokens:
            words.append(f"{record.prompt_tokens} -> {record.completion_tokens} tokens")
        words.append(f"{record.seconds:.2f} s")
        words += [word for word in (record.finish, record.error, record.field and _name(record.field)) if word]
        if record.unheeded:
            words.append(f"ignored: {', '.join(map(_name, record.unheeded))}")
        if left_out:
            words.append(f"({left_out:,} lines of refusals left out before)")
        return "  ".join(words)


class Bookkeeping:
    """Opens an record for every request, names it in `x-request-id`, and closes it when the answer is out."""

    def __init__(
        self,
        app: ASGIApp,
        journal: Journal,
        metrics: Metrics,
        allowances: Allowances,
        tracing: Tracing | None = None,
    ) -> None:
        self.app, self.journal, self.metrics, self.allowances = app, journal, metrics, allowances
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = scope["herd.request"] = RequestRecord(scope["path"])

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
                if speaks_anthropic(scope):
                    headers.append((b"request-id", record.id.encode()))
                if record.unheeded:
                    headers.append((b"x-herd-ignored", ", ".join(record.unheeded).encode("ascii", "backslashreplace")))
                if record.owner is not None:
                    headers += self.allowances.headers(record.owner)
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            record.seconds = time.monotonic() - record.began
            if record.owner is not None:
                self.allowances.spend_tokens(record.owner, record.prompt_tokens + record.completion_tokens)
            self.metrics.observe(record)
            self.journal.write(record)
            if self.tracing is not None:
                self.tracing.write(record, Headers(scope=scope))


def _name(field: str) -> str:
    """A field's name; what is no name may be somebody's words, which have no place in a log."""
    return field if _NAME.fullmatch(field) else "(no name)"


_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}|and \d+ more")
