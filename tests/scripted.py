"""A server that does, connection by connection, whatever a test wants of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

Act = bytes | Callable[[socket.socket], None]


class Scripted:
    """Reads a request and answers with the next act (bytes, or a function of the connection); the last one stays.

    `requests` are (first line, headers, body) of what was asked.
    """

    def __init__(self, *acts: Act) -> None:
        self.acts, self.requests = list(acts), []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.ending = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Scripted:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self.ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                with connection.makefile("rb") as reader:
                    first, headers = reader.readline().decode().strip(), {}
                    while line := reader.readline().decode("latin-1").strip():
                        name, _, value = line.partition(": ")
                        headers[name.lower()] = value
                    body = reader.read(int(headers.get("content-length", 0)))
                with self._lock:
                    self.requests.append((first, headers, body))
                    act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
                if callable(act):
                    act(connection)
                else:
                    connection.sendall(act)
            except OSError:
                return  # the client has gone


def http(content: bytes | str, *, status: str = "200 OK", kind: str = "application/json", extra: str = "") -> bytes:
    """A whole response."""
    data = content.encode() if isinstance(content, str) else content
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode() + data


def said(text: str, **more: Any) -> dict[str, Any]:
    """An answer of a chat, as OpenAI writes it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def answer(text: str, **more: Any) -> bytes:
    """The whole response with such an answer."""
    return http(json.dumps(said(text, **more)))


def events(*data: Any, done: bool = True, length: bool = True) -> bytes:
    """A stream of server-sent events."""
    lines = [item if isinstance(item, str) else json.dumps(item) for item in data] + (["[DONE]"] if done else [])
    text = "".join(f"data: {line}\n\n" for line in lines)
    if length:
        return http(text, kind="text/event-stream")
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + text.encode()


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    """An event of a stream that brings a piece of an answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
