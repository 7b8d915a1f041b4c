"""The settings of a server that are not the engine's."""

from __future__ import annotations

from pathlib import Path

from herd.config import settings
from herd.serve.connections import Door
from herd.serve.files import FileLimits
from herd.serve.journal import Form
from herd.serve.limits import Limits


@settings
class ServeLimits:
    """What the server takes on."""

    max_waiting: int = 256
    """Answers that may wait, of each model; more are refused with 429."""
    max_tokens: int = 2048
    """Longest answer where a request does not say, in tokens."""
    max_body_mb: float = 4.0
    """Largest request body in MB; larger ones are refused with 413."""
    max_file_mb: float = 32.0
    """Largest file that is sent to /v1/files in MB; all files of one conversation together are held to it too."""
    max_files: int = 100
    """Files kept for each key; what tools made before gives way to what they make now."""
    files_mb: float = 200.0
    """Of all files of a key together, in MB."""
    files_minutes: float = 60.0
    """For which a file is kept after its last use, in minutes."""
    timeout_seconds: float = 600.0
    """For a whole answer in seconds; then it is cancelled."""
    max_connections: int = 1024
    """Connections held at once, as far as the limit of open files allows; one that waits is closed for a new one."""
    header_seconds: float = 20.0
    """For the head of a request to arrive, in seconds; then the connection is closed."""
    stalled_seconds: float = 60.0
    """For a client to read anything of what it is sent, in seconds; then the connection is closed."""
    body_seconds: float = 30.0
    """For a request's body to arrive, in seconds."""
    drain_seconds: float = 10.0
    """For answers in progress when the server is told to stop, in seconds."""
    requests_per_minute: int | None = None
    """Requests a key may send in a minute; no limit when not given."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers a key may use in a minute; no limit when not given."""
    share_prefixes: bool = False
    """Keys share what is computed of equal prompts: faster, but an answer's speed tells what others asked."""

    def __post_init__(self):
        for name in ("max_waiting", "max_tokens", "max_connections", "max_files"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        seconds = ("timeout_seconds", "header_seconds", "stalled_seconds", "body_seconds", "drain_seconds")
        for name in ("max_body_mb", "max_file_mb", "files_mb", "files_minutes", *seconds):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")

    def door(self) -> Door:
        """Who is let in."""
        return Door(self.max_connections, self.header_seconds, self.stalled_seconds)

    def for_files(self) -> FileLimits:
        """What is kept of files."""
        mega, seconds = 1e6, 60 * self.files_minutes
        return FileLimits(int(self.max_file_mb * mega), self.max_files, int(self.files_mb * mega), seconds)

    def for_app(self) -> Limits:
        """The same in the units of the application."""
        return Limits(
            max_waiting=self.max_waiting,
            max_body_bytes=int(self.max_body_mb * 1e6),
            max_upload_bytes=int(self.max_file_mb * 1e6) + 1_000_000,
            max_tokens=self.max_tokens,
            timeout_seconds=self.timeout_seconds,
            body_seconds=self.body_seconds,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            share_prefixes=self.share_prefixes,
        )


@settings
class ServeLog:
    """One line for every request, on standard error."""

    form: Form = "text"
    """`text` for people, `json` for programs, `off` for no lines."""
    with_text: bool = False
    """Also what was asked and answered (form json only): it is not kept otherwise."""
    verdicts: Path | None = None
    """File to which each text that a guard flags adds a line of JSON: when, whose, where and why, without the text."""
    traces: bool = False
    """Spans for OpenTelemetry, without what was asked and answered, to where its variables say (OTEL_...)."""

    def __post_init__(self):
        if self.with_text and self.form != "json":
            raise ValueError("with_text needs form json")
