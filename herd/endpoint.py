"""One client of any OpenAI-compatible endpoint (vLLM, SGLang, a vendor, `herd serve`), with the standard library alone.

    endpoint = Endpoint("http://gpu-box:8000/v1", cache=Path("answers"))
    endpoint.complete([{"role": "user", "content": "Hello"}], model="llama", max_tokens=50).choices[0].text
    for answer in endpoint.each(ask, questions): ...

Whatever a server does, a call ends: with its answer, or with one sentence. Each call has a deadline over all its tries
and a largest answer; busy and failing servers are asked again, later each time and not all at once. The key travels to
the address it was given for and nowhere else: no redirect is followed.
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
from herd.wire import Clock, Exchange, Fault, Wire, parsed, reason, strange

T = TypeVar("T")
Item = TypeVar("Item")
_PASSING = (408, 425, 429, 500, 502, 503, 504, 529)  # busy, or away for a moment
_LONGEST_PAUSE_SECONDS = 30.0
_AHEAD = 4  # times as many items are begun as are answered at once, so that one slow answer does not stop the others
_HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can hold and no text can
_WRITING = threading.Lock()  # two threads with one request would write one file


@settings
class Prices:
    """What an endpoint charges, in any currency."""

    prompt: float = 0.0
    """Of a million tokens of prompts."""
    completion: float = 0.0
    """Of a million tokens of answers."""

    def __post_init__(self):
        if min(self.prompt, self.completion) < 0:
            raise ValueError("prices must not be negative")


@dataclass
class Count:
    """What this client has asked of an endpoint: requests, tokens, cost."""

    requests: int = 0  # that were answered
    tries: int = 0  # exchanges begun, those that failed too
    cached: int = 0  # answered from the disk, at no cost
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers that came without a count of tokens: the sums and the cost are too low by these
    cost: float = 0.0

    def __str__(self) -> str:
        told = f"{self.requests:,} requests"
        told += f" ({self.tries - self.requests:,} tried again)" if self.tries > self.requests else ""
        told += f", {self.cached:,} from the cache" if self.cached else ""
        told += f", {amount(self.prompt_tokens)} + {amount(self.completion_tokens)} tokens"
        told += f", cost {self.cost:.2f}" if self.cost else ""
        return told + (f"; {self.uncounted:,} answers told no tokens" if self.uncounted else "")


@dataclass(frozen=True)
class TokenText:
    """A token as an endpoint tells of it: by its text, where ids are not known."""

    text: str
    logprob: float | None  # natural; None for the first token of an echoed prompt
    top: tuple[tuple[str, float], ...] = ()
    offset: int | None = None  # characters before it, where the endpoint says (plain completions)


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
    """How long a call may take, how often it is tried, and how much it may bring."""

    seconds: float = 600.0  # for a whole call with all its tries
    silence_seconds: float | None = None  # for the next bytes of an answer; no other limit than `seconds` when None
    tries: int = 4
    pause_seconds: float = 1.0  # before the second try; twice as long before each further one, give or take a half
    max_bytes: int = 64_000_000  # of one answer


class Endpoint:
    """An endpoint by its address, which ends before `/chat/completions`, usually in `/v1`.

    `key` is sent as a bearer token. With a folder as `cache`, an answer is kept under the hash of address and request
    (never of the key), and the same request is not sent again; streams are not kept. Objects may be used by many
    threads at once.

    Raises:
        RequestError: the address is none, or the key does not fit into a header.
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

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def complete(self, inputs: str | Conversation, *, logprobs: int | None = None, **fields: Any) -> Answer:
        """The answer to messages (chat), or to a text that is gone on with; `fields` are OpenAI's, `model` among them.

        With `logprobs` each token comes with its log-probability and so many of the likeliest in its place.

        Raises:
            RequestError: the endpoint refuses, in its own words.
            CapacityError: it cannot be reached, takes too long, or does not answer as such an endpoint.
        """
        path, body = request_of(inputs, logprobs, fields)
        return self.ask(path, body, read_answer)

    def pieces(self, inputs: str | Conversation, *, logprobs: int | None = None, **fields: Any) -> Iterator[Choice]:
        """The same, piece by piece as it is made. Leaving early closes the connection.

        Raises:
            UserError: as `complete`; also midway.
        """
        path, body = request_of(inputs, logprobs, fields)
        for choices in self.stream(path, body | {"stream": True}, read_choices):
            yield from choices

    def models(self, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The models that are served, each with an `id` and whatever else is told of it.

        Raises:
            UserError: as `complete`.
        """

        def read(found: Any) -> list[dict[str, Any]]:
            return [{**entry, "id": str(entry["id"])} for entry in found["data"]]

        try:
            return self.ask("/models", None, read, seconds=min(seconds, self.patience.seconds))
        except CapacityError as error:
            raise CapacityError(f"{error} (asked for its list of models)") from None

    # ---- how -----------------------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T], *, seconds: float | None = None
    ) -> T:
        """What `read` makes of the JSON that answers a request; POST, or GET without a body.

        `read` may fail with a LookupError, TypeError, AttributeError or ValueError where the answer lacks something.

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
                raise DataError(f"{file}: holds no such answer; delete it, or give another cache") from None
        clock = Clock(seconds or self.patience.seconds, self.patience.silence_seconds)

        def once() -> tuple[Any, T]:
            with closing(self._exchange(path, body, clock)) as exchange:
                found = parsed(exchange.whole(self.patience.max_bytes))
            return found, self._read(found, read)

        found, result = self._patiently(clock, once)
        self._add(found.get("usage") if isinstance(found, dict) else None, counts=body is not None)
        if file is not None:
            with _WRITING:
                atomic_write(file, json.dumps(found))
        return result

    def stream(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> Iterator[T]:
        """What `read` makes of each server-sent event; tried again only as long as nothing was answered.

        Raises:
            UserError: as `complete`; also where the stream ends before its answer does.
        """
        clock = Clock(self.patience.seconds, self.patience.silence_seconds)
        exchange = self._patiently(clock, lambda: self._exchange(path, body, clock))
        usage, is_whole, is_begun = None, False, False
        with closing(exchange):
            try:
                for data in exchange.events(self.patience.max_bytes):
                    is_begun = True
                    if data == b"[DONE]":
                        is_whole = True
                        break
                    event = parsed(data)
                    if not isinstance(event, dict):
                        raise strange("an event that is no object")
                    if event.get("error"):
                        raise RequestError(f"{self.url}: {self._safe(reason(event))}")
                    usage = event.get("usage") or usage
                    is_whole = is_whole or _is_last(event)
                    yield self._read(event, read)
                if not is_whole:
                    raise strange("a stream that is cut off" if is_begun else "no stream of events")
            except Fault as fault:
                if not is_whole:  # whatever comes after the end
                    raise self._told(fault, 1) from None
        self._add(usage)

    def each(self, ask: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
        """`ask(item)` of each item, in order, `num_at_once` of them at once; `items` may be endless.

        The first fault ends it. Whoever leaves early, with Ctrl-C too, does not wait for what is under way.
        """
        places, left, begun = threading.Semaphore(self.num_at_once), threading.Event(), deque[Future[T]]()

        def work(item: Item, future: Future[T]) -> None:
            with places:
                if left.is_set():
                    return
                try:
                    future.set_result(ask(item))
                except BaseException as error:
                    future.set_exception(error)

        try:
            for item in items:
                begun.append(Future())
                threading.Thread(target=work, args=(item, begun[-1]), daemon=True).start()
                if len(begun) >= _AHEAD * self.num_at_once:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            left.set()

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
                if not fault.passing or attempt == tries or pause >= clock.left:
                    raise self._told(fault, attempt) from None
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _exchange(self, path: str, body: dict[str, Any] | None, clock: Clock) -> Exchange:
        """A request that was sent and not refused."""
        exchange = self._wire.send(path, None if body is None else json.dumps(body).encode(), clock)
        if 200 <= exchange.status < 300:
            return exchange
        with closing(exchange):
            if 300 <= exchange.status < 400:
                where = self._safe(exchange.header("Location"))
                told = f"sends its clients elsewhere ({where or 'it does not say where'}); give that address instead"
                raise Fault(RequestError(f"{self.url} {told}"))
            wait = exchange.retry_after()
            told = f"refused the request ({exchange.status}): {self._safe(exchange.reason())}"
            told += f" (it asks to come back in {wait:g} s)" if wait else ""
            raise Fault(RequestError(f"{self.url} {told}"), passing=exchange.status in _PASSING, wait=wait)

    def _read(self, found: Any, read: Callable[[Any], T]) -> T:
        try:
            return read(found)
        except (LookupError, TypeError, AttributeError, ValueError):
            raise strange(json.dumps(found)[:200], passing=True) from None

    def _told(self, fault: Fault, tries: int) -> UserError:
        error = fault.error
        if isinstance(error, CapacityError):  # the wire does not know whose it is
            error = CapacityError(f"{self.url} {self._safe(str(error))}")
        return type(error)(f"{error} (after {tries} tries)") if tries > 1 else error

    def _safe(self, text: str) -> str:
        """What a server said, on one line and without the key, which some repeat."""
        text = " ".join(_HALVES.sub("?", re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)).split())
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
    """A key can be sent: no control characters, no space at its ends."""
    return key == key.strip() and not any(letter < " " or letter == "\x7f" for letter in key)


def key_of(*variables: str) -> str | None:
    """The key that the first of these environment variables holds, if any does."""
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)


def _bearer(key: str | None) -> dict[str, str]:
    """The header of a key, in UTF-8: Python writes headers in Latin-1, byte for byte."""
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
        raise DataError(f"{file}: holds no answer ({error}); delete it, or give another cache") from None


# ---- OpenAI's forms --------------------------------------------------------------------------------------------------


def request_of(inputs: str | Conversation, logprobs: int | None, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request for answers."""
    if isinstance(inputs, str):
        return "/completions", {**fields, **({} if logprobs is None else {"logprobs": logprobs}), "prompt": inputs}
    wanted = {} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}
    return "/chat/completions", {**fields, **wanted, "messages": messages_of(inputs)}


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as OpenAI writes it: a tool's answers carry the ids of the calls, in order."""
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


def read_answer(found: Any) -> Answer:
    """An answer in OpenAI's form; raises as `Endpoint.ask` allows."""
    usage = found.get("usage") or {}
    choices = sorted(read_choices(found), key=lambda choice: choice.index)
    return Answer(choices, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


def read_choices(found: Any) -> list[Choice]:
    """The choices of an answer or of a piece of one."""
    return [_choice(choice) for choice in found["choices"]]


def _choice(choice: dict[str, Any]) -> Choice:
    said = choice.get("delta", choice.get("message"))
    text = choice["text"] if said is None else said.get("content")
    if not isinstance(text, str | None):
        raise TypeError("content is no text")
    text = _HALVES.sub("\N{REPLACEMENT CHARACTER}", text or "")
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
