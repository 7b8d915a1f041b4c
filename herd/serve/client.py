"""A client of any OpenAI-compatible server, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from herd.errors import RequestError
from herd.types import Conversation, Message, SamplingParams

_SECONDS = 300.0  # for the next piece of an answer
_LIST_SECONDS = 30.0  # for the list of models, which computes nothing
_KEY_VARIABLES = ("HERD_KEY", "OPENAI_API_KEY")
_OPENAI_FIELDS = ("temperature", "top_p", "max_tokens", "seed", "n", "presence_penalty", "frequency_penalty")


class Client:
    """Talks to one model of a server.

    `url` is the server's address, with or without `/v1`. The model is the first one it lists unless it is named. The
    key comes from HERD_KEY or OPENAI_API_KEY where it is not given.

    Raises:
        RequestError: the server cannot be reached, or has no such model.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._key = key or next((os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)), None)
        try:
            with self._open("models", seconds=_LIST_SECONDS) as response:
                listed = json.load(response)["data"]
            listed = [{"id": str(entry["id"]), "chat": bool(entry.get("chat", True))} for entry in listed]
        except (ValueError, KeyError, TypeError, AttributeError, OSError, http.client.HTTPException):
            raise RequestError(
                f"{self.url}/models gives no list of models; is it an OpenAI-compatible server?"
            ) from None
        found = next((entry for entry in listed if model in (None, entry["id"])), None)
        if found is None:
            there = ", ".join(entry["id"] for entry in listed) or "none"
            raise RequestError(f"{self.url} has no model {model!r}; there is: {there}")
        self.model, self.speaks_chat = found["id"], found["chat"]

    def stream(self, inputs: str | Conversation, params: SamplingParams) -> Iterator[tuple[str, int]]:
        """The pieces of an answer with their numbers of tokens (one each, as far as a server tells).

        Raises:
            RequestError: the server refuses, in its own words, or goes away.
        """
        body: dict[str, Any] = {"model": self.model, "stream": True} | _fields(params)
        if isinstance(inputs, str):
            response = self._open("completions", body | {"prompt": inputs})
        else:
            response = self._open("chat/completions", body | {"messages": [_as_openai(m) for m in inputs]})
        with response:
            try:
                for event in _events(response):
                    if "error" in event:
                        raise RequestError(f"{self.url}: {event['error'].get('message', event['error'])}")
                    for choice in event.get("choices", ()):
                        text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
                        if text:
                            yield text, 1
            except (OSError, http.client.HTTPException) as error:
                raise RequestError(f"{self.url}: the connection was lost ({error})") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RequestError(f"{self.url} sends a stream that is not OpenAI's ({error})") from None

    def _open(
        self, path: str, body: dict[str, Any] | None = None, seconds: float = _SECONDS
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": _bearer(self._key)} if self._key else {})
        try:
            request = urllib.request.Request(f"{self.url}/{path}", data, headers)
            return urllib.request.urlopen(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            raise RequestError(f"{self.url}: {_message(error)}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RequestError(f"{self.url} cannot be reached ({reason}); is the server running?") from None


def fits_header(key: str) -> bool:
    """A key can be sent: no control characters, no space at its ends."""
    return key == key.strip() and not any(letter < " " or letter == "\x7f" for letter in key)


def _bearer(key: str) -> str:
    """The header of a key, in UTF-8: Python writes headers in Latin-1, byte for byte."""
    if not fits_header(key):
        raise RequestError(
            f"the key ({' or '.join(_KEY_VARIABLES)}) holds a line break, or begins or ends with a space"
        )
    return f"Bearer {key}".encode("utf-8", "surrogateescape").decode("latin-1")


def _fields(params: SamplingParams) -> dict[str, Any]:
    """The settings that differ from nothing; those outside OpenAI's API only where they are used."""
    neutral = asdict(SamplingParams(temperature=-1, top_p=-1, max_tokens=-1))
    return {
        name: value
        for name, value in asdict(params).items()
        if value != neutral[name] or (name in _OPENAI_FIELDS and name in ("temperature", "top_p", "max_tokens"))
    }


def _as_openai(message: Message) -> dict[str, Any]:
    return {"role": "tool" if message["role"] == "ipython" else message["role"], "content": message["content"]}


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield json.loads(data)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"
