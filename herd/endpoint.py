"""One client of any OpenAI-compatible endpoint (vLLM, SGLang, a vendor, `herd serve`), with the standard library alone.

    endpoint = Endpoint("http://gpu-box:8000/v1", cache=Path("answers"))
    endpoint.complete([{"role": "user", "content": "Hello"}], model="llama", max_tokens=50).choices[0].text
    for answer in endpoint.each(ask, questions): ...

Whatever a server does, a call ends with its answer or one error message. Each call has a deadline over all its retries
and a size limit; busy and failing servers are retried with exponential backoff and jitter. The key is sent to the given
address only: redirects are not followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from herd.config import settings
from herd.errors import CapacityError, DataError, RequestError, UserError
from herd.log import amount
from herd.run import atomic_write
from herd.types import Conversation
from herd.wire import Clock, Exchange, Fault, Wire, parsed, reason, unexpected

T = TypeVar("T")
Item = TypeVar("Item")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 529)  # busy, or briefly unavailable
_LONGEST_PAUSE_SECONDS = 30.0
_AHEAD = 4  # times as many items are started as run at once, so that a slow one does not hold up the others
_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, valid in JSON but not in text
_CACHE_WRITE = threading.Lock()  # two threads with the same request write the same file


@settings
class Prices:
    """What an endpoint charges, in any currency."""

    prompt: float = 0.0
    """Price of a million prompt tokens."""
    completion: float = 0.0
    """Price of a million answer tokens."""

    def __post_init__(self):
        if min(self.prompt, self.completion) < 0:
            raise ValueError("prices must not be negative")


@dataclass
class Count:
    """A client's use of an endpoint: requests, tokens, cost."""

    requests: int = 0  # answered ones
    tries: int = 0  # exchanges, failed ones included
    cached: int = 0  # answered from the disk, at no cost
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers without token counts, which are missing from the sums and the cost
    cost: float = 0.0

    def __str__(self) -> str:
        text = f"{self.requests:,} requests"
        text += f" ({self.tries - self.requests:,} retried)" if self.tries > self.requests else ""
        text += f", {self.cached:,} from the cache" if self.cached else ""
        text += f", {amount(self.prompt_tokens)} + {amount(self.completion_tokens)} tokens"
        text += f", cost {self.cost:.2f}" if self.cost else ""
        return text + (f"; {self.uncounted:,} answers without token counts" if self.uncounted else "")


@dataclass(frozen=True)
class TokenText:
    """A token as an endpoint reports it: by its text, without its id."""

    text: str
    logprob: float | None  # natural; None for the first token of an echoed prompt
    top: tuple[tuple[str, float], ...] = ()
    offset: int | None = None  # characters before it, if the endpoint says (plain completions)


@dataclass(frozen=True)
class Choice:
    """One answer, or the next piece of one. `finish_reason` is empty until the answer's end."""

    index: int
    text: str
    finish_reason: str
    tokens: list[TokenText] | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one request, its choices in order."""

    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int


@dataclass(kw_only=True)
class Patience:
    """Limits of a call: time, retries, size of the answer."""

    seconds: float = 600.0  # for a whole call with all its retries
    silence_seconds: float | None = None  # for the next bytes of an answer; None: only `seconds` counts
    tries: int = 4
    pause_seconds: float = 1.0  # before the second try, doubled before each further one, plus or minus half of it
    max_bytes: int = 64_000_000  # of one answer


class Endpoint:
    """An endpoint by its address without `/chat/completions`; it usually ends in `/v1`.

    `key` is sent as a bearer token. With a folder as `cache`, answers are kept under the hash of address and request
    (without the key), and the same request is not sent again; streams are not cached. Thread-safe.

    Raises:
        RequestError: the address is not valid, or the key cannot be sent in a header.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        patience: Patience | None = None,
        num_at_once: int = 16,
        cache: Path | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.patience, self.num_at_once = patience or Patience(), num_at_once
        self.count = Count()
        self._cache, self._prices, self._key, self._lock = cache, prices or Prices(), key, threading.Lock()
        self._wire = Wire(url, _bearer(key))
        self.url = self._wire.url

    # ---- requests ----------------------------------------------------------------------------------------------------

    def complete(self, inputs: str | Conversation, *, logprobs: int | None = None, **fields: Any) -> Answer:
        """The answer to messages (chat), or the continuation of a text; `fields` are OpenAI's, `model` among them.

        With `logprobs`, each token has its log-probability and those of this many likeliest alternatives.

        Raises:
            RequestError: the endpoint refuses; the message is its own.
            CapacityError: it cannot be reached, takes too long, or does not answer as an OpenAI-compatible endpoint.
        """
        path, body = request_of(inputs, logprobs, fields)
        return self.ask(path, body, read_answer)

    def pieces(self, inputs: str | Conversation, *, logprobs: int | None = None, **fields: Any) -> Iterator[Choice]:
        """The same, streamed. Leaving the iterator early closes the connection.

        Raises:
            UserError: as `complete`; also midway.
        """
        path, body = request_of(inputs, logprobs, fields)
        for choices in self.stream(path, body | {"stream": True}, read_choices):
            yield from choices

    def models(self, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The models of the endpoint, each with an `id` and whatever else it reports.

        Raises:
            UserError: as `complete`.
        """

        def read(reply: Any) -> list[dict[str, Any]]:
            return [{**entry, "id": str(entry["id"])} for entry in reply["data"]]

        try:
            return self.ask("/models", None, read, seconds=min(seconds, self.patience.seconds))
        except CapacityError as error:
            raise CapacityError(f"{error} (asked for its list of models)") from None

    # ---- transport ---------------------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T], *, seconds: float | None = None
    ) -> T:
        """Send a request (POST, or GET without a body) and return what `read` makes of its JSON answer.

        `read` may raise LookupError, TypeError, AttributeError or ValueError if the answer is incomplete.

        Raises:
            UserError: as `complete`.
        """
        file = self._file(path, body)
        if file is not None and (kept := _kept(file)) is not None:
            with self._lock:
                self.count.cached += 1
            try:
                return self._read(kept, read)
            except Fault:
                raise DataError(
                    f"{file}: not a cached answer to this request; delete it, or choose another cache"
                ) from None
        clock = Clock(seconds or self.patience.seconds, self.patience.silence_seconds)

        def once() -> tuple[Any, T]:
            with closing(self._exchange(path, body, clock)) as exchange:
                reply = parsed(exchange.whole(self.patience.max_bytes))
            return reply, self._read(reply, read)

        reply, result = self._patiently(clock, once)
        self._add(reply.get("usage") if isinstance(reply, dict) else None, counts=body is not None)
        if file is not None:
            with _CACHE_WRITE:
                atomic_write(file, json.dumps(reply))
        return result

    def stream(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> Iterator[T]:
        """What `read` makes of each server-sent event; retried only before the first event.

        Raises:
            UserError: as `complete`; also if the stream ends before its answer does.
        """
        clock = Clock(self.patience.seconds, self.patience.silence_seconds)
        exchange = self._patiently(clock, lambda: self._exchange(path, body, clock))
        usage, is_complete, has_begun = None, False, False
        with closing(exchange):
            try:
                for data in exchange.events(self.patience.max_bytes):
                    has_begun = True
                    if data == b"[DONE]":
                        is_complete = True
                        break
                    event = parsed(data)
                    if not isinstance(event, dict):
                        raise unexpected("an event that is no object")
                    if event.get("error"):
                        raise RequestError(f"{self.url}: {self._safe(reason(event))}")
                    usage = event.get("usage") or usage
                    is_complete = is_complete or _is_last(event)
                    yield self._read(event, read)
                if not is_complete:
                    raise unexpected("a stream that is cut off" if has_begun else "no stream of events")
            except Fault as fault:
                if not is_complete:  # errors after the end are ignored
                    raise self._as_error(fault, 1) from None
        self._add(usage)

    def each(self, ask: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
        """`ask(item)` for each item, in order, `num_at_once` in parallel; `items` may be infinite.

        The first error ends it. Leaving early, also by Ctrl-C, does not wait for running requests.
        """
        slots, stopped, started = threading.Semaphore(self.num_at_once), threading.Event(), deque[Future[T]]()

        def work(item: Item, future: Future[T]) -> None:
            with slots:
                if stopped.is_set():
                    return
                try:
                    future.set_result(ask(item))
                except BaseException as error:
                    future.set_exception(error)

        try:
            for item in items:
                started.append(Future())
                threading.Thread(target=work, args=(item, started[-1]), daemon=True).start()
                if len(started) >= _AHEAD * self.num_at_once:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            stopped.set()

    def _patiently(self, clock: Clock, once: Callable[[], T]) -> T:
        tries = max(1, self.patience.tries)
        for attempt in range(1, tries + 1):
            with self._lock:
                self.count.tries += 1
            try:
                return once()
            except Fault as fault:
                pause = self.patience.pause_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                pause = max(fault.wait, min(pause, _LONGEST_PAUSE_SECONDS))
                if not fault.transient or attempt == tries or pause >= clock.left:
                    raise self._as_error(fault, attempt) from None
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _exchange(self, path: str, body: dict[str, Any] | None, clock: Clock) -> Exchange:
        """Send a request; raises a `Fault` if it is refused."""
        exchange = self._wire.send(path, None if body is None else json.dumps(body).encode(), clock)
        if 200 <= exchange.status < 300:
            return exchange
        with closing(exchange):
            if 300 <= exchange.status < 400:
                where = self._safe(exchange.header("Location"))
                message = f"redirects ({where or 'without saying where'}); give that address instead"
                raise Fault(RequestError(f"{self.url} {message}"))
            wait = exchange.retry_after()
            message = f"refused the request ({exchange.status}): {self._safe(exchange.reason())}"
            message += f" (it asks to retry in {wait:g} s)" if wait else ""
            raise Fault(RequestError(f"{self.url} {message}"), transient=exchange.status in _TRANSIENT, wait=wait)

    def _read(self, reply: Any, read: Callable[[Any], T]) -> T:
        try:
            return read(reply)
        except (LookupError, TypeError, AttributeError, ValueError):
            raise unexpected(json.dumps(reply)[:200], transient=True) from None

    def _as_error(self, fault: Fault, tries: int) -> UserError:
        error = fault.error
        if isinstance(error, CapacityError):  # the message lacks the address
            error = CapacityError(f"{self.url} {self._safe(str(error))}")
        return type(error)(f"{error} (after {tries} tries)") if tries > 1 else error

    def _safe(self, text: str) -> str:
        """A server's message, on one line and without the key, which some servers repeat."""
        text = " ".join(_SURROGATES.sub("?", re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)).split())
        return text.replace(self._key, "...") if self._key else text

    def _file(self, path: str, body: dict[str, Any] | None) -> Path | None:
        if self._cache is None or body is None:
            return None
        name = hashlib.sha256(json.dumps([self.url + path, body], sort_keys=True).encode()).hexdigest()
        return self._cache / name[:2] / f"{name}.json"

    def _add(self, usage: Any, *, counts: bool = True) -> None:
        counted = [usage.get(f"{name}_tokens") for name in ("prompt", "completion")] if isinstance(usage, dict) else []
        prompt, completion = (number if isinstance(number, int) else 0 for number in counted or (0, 0))
        with self._lock:
            self.count.requests += 1
            self.count.uncounted += counts and not any(isinstance(number, int) for number in counted)
            self.count.prompt_tokens += prompt
            self.count.completion_tokens += completion
            self.count.cost += (prompt * self._prices.prompt + completion * self._prices.completion) / 1e6


def fits_header(key: str) -> bool:
    """Whether a key can be sent in a header: no control characters, no space at its ends."""
    return key == key.strip() and not any(letter < " " or letter == "\x7f" for letter in key)


def key_of(*variables: str) -> str | None:
    """The key in the first of these environment variables that is set, if any."""
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)


def _bearer(key: str | None) -> dict[str, str]:
    """The header for a key, its UTF-8 bytes passed through Latin-1, in which Python writes headers."""
    if not key:
        return {}
    if not fits_header(key):
        raise RequestError("the key holds a line break, or begins or ends with a space; no header may")
    return {"Authorization": f"Bearer {key}".encode("utf-8", "surrogateescape").decode("latin-1")}


def _kept(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a cached answer ({error}); delete it, or choose another cache") from None


# ---- OpenAI's forms --------------------------------------------------------------------------------------------------


def request_of(inputs: str | Conversation, logprobs: int | None, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request for answers."""
    if isinstance(inputs, str):
        return "/completions", {**fields, **({} if logprobs is None else {"logprobs": logprobs}), "prompt": inputs}
    wanted = {} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}
    return "/chat/completions", {**fields, **wanted, "messages": messages_of(inputs)}


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation in OpenAI's form: tool results carry the ids of the calls, in order."""
    messages, open_calls = [], deque[str]()
    for place, message in enumerate(conversation):
        written: dict[str, Any] = dict(message)
        if calls := written.pop("tool_calls", None):
            functions = [{"name": c["name"], "arguments": json.dumps(c["arguments"])} for c in calls]
            ids = [f"call_{place}_{number}" for number in range(len(calls))]
            open_calls = deque(ids)
            written["tool_calls"] = [
                {"id": name, "type": "function", "function": f} for name, f in zip(ids, functions, strict=True)
            ]
        if written["role"] == "ipython":
            written |= {"role": "tool", "tool_call_id": open_calls.popleft() if open_calls else f"call_{place}"}
        messages.append(written)
    return messages


def read_answer(reply: Any) -> Answer:
    """An answer in OpenAI's form; raises as `Endpoint.ask` allows."""
    usage = reply.get("usage") or {}
    choices = sorted(read_choices(reply), key=lambda choice: choice.index)
    return Answer(choices, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


def read_choices(reply: Any) -> list[Choice]:
    """The choices of an answer, or of one chunk of a stream."""
    return [_choice(choice) for choice in reply["choices"]]


def _choice(choice: dict[str, Any]) -> Choice:
    said = choice.get("delta", choice.get("message"))
    text = choice["text"] if said is None else said.get("content")
    if not isinstance(text, str | None):
        raise TypeError("content is no text")
    text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text or "")
    return Choice(choice.get("index", 0), text, choice.get("finish_reason") or "", _tokens(choice.get("logprobs")))


def _tokens(reported: Any) -> list[TokenText] | None:
    reported = reported or {}
    if reported.get("content") is not None:
        return [
            TokenText(e["token"], e["logprob"], tuple((t["token"], t["logprob"]) for t in e.get("top_logprobs") or ()))
            for e in reported["content"]
        ]
    if reported.get("token_logprobs") is None:
        return None
    scores = reported["token_logprobs"]
    tops = reported.get("top_logprobs") or [None] * len(scores)
    offsets = reported.get("text_offset") or [None] * len(scores)
    rows = zip(reported.get("tokens") or [""] * len(scores), scores, tops, offsets, strict=True)
    return [TokenText(text, score, tuple((top or {}).items()), offset) for text, score, top, offset in rows]


def _is_last(event: dict[str, Any]) -> bool:
    choices = event.get("choices")
    return isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices)
