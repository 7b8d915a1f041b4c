"""What a server takes on, and for whom: keys, rates, sizes, times."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.infer.engine import Engine
from herd.serve.errors import ApiError, refusal


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server takes on."""

    max_waiting: int = 256  # answers in the queue; more are refused with 429
    max_body_bytes: int = 4_000_000  # larger bodies are refused with 413
    max_upload_bytes: int = 33_000_000  # of a file, with what is sent around it
    max_tokens: int = 2048  # longest answer where the request does not say
    timeout_seconds: float = 600.0  # for a whole answer; then it is cancelled
    keep_alive_seconds: float = 15.0  # after which a stream that has nothing to say says so
    body_seconds: float = 30.0  # for a body to arrive; then the client gets 408
    requests_per_minute: int | None = None  # of each key; more are refused with 429
    tokens_per_minute: int | None = None  # of each key, prompts and answers together
    share_prefixes: bool = False  # between keys: an answer's speed then tells what others asked
    wrong_keys_per_minute: int = 30  # from one address; each more is answered late


class Keys:
    """Who may ask: names by their keys. With no keys everybody may, under the name `anyone`."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {name: _written(key) for name, key in keys.items()}

    def owner(self, authorization: str, api_key: str = "") -> str:
        """The name behind an `Authorization` header, or an `X-Api-Key`.

        Raises:
            ApiError: 401, a key is missing or wrong.
        """
        if not self._keys:
            return "anyone"
        scheme, _, key = authorization.partition(" ")
        key = key if scheme.lower() == "bearer" else api_key
        given = key.strip(" \t").encode("latin-1")
        owners = [name for name, ways in self._keys.items() if any(hmac.compare_digest(given, way) for way in ways)]
        if not owners:
            raise ApiError(401, "A valid key is required: Authorization: Bearer KEY.", code="invalid_api_key")
        return owners[0]


def _written(key: str) -> list[bytes]:
    """How clients write a key in a header: in UTF-8, as curl and our page do, or in Latin-1, as Python's do."""
    ways = [key.encode("utf-8", "surrogateescape")]
    with suppress(UnicodeEncodeError):
        ways.append(key.encode("latin-1"))
    return ways


class Guesses:
    """Wrong keys by the address they come from: the first few are answered at once, more of them late.

    A right key is never made to wait: whoever else comes through the same proxy is not to suffer for a guesser.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._rates: OrderedDict[str, Rate] = OrderedDict()
        self._num_held = 0

    async def hold(self, address: str) -> None:
        """Count a wrong key, and hold its answer back; not more of them than leave places for others."""
        seconds = self.wait_seconds(address)
        if seconds and self._num_held < _MOST_HELD:
            self._num_held += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._num_held -= 1

    def wait_seconds(self, address: str) -> float:
        """Count a wrong key; how long its answer is to be held back."""
        rate = self._rates.pop(address, None) or Rate(self._per_minute, self._clock)
        self._rates[address] = rate
        while len(self._rates) > _ADDRESSES:
            self._rates.popitem(last=False)
        seconds = min(rate.wait_seconds(1), _LONGEST_WAIT)
        rate.spend(1)
        return seconds


_ADDRESSES = 10_000  # that wrong keys are remembered of
_LONGEST_WAIT = 5.0
_MOST_HELD = 64


class Gate:
    """What every request to the API must pass before its body is read: the server goes on, the key is right, its
    allowance is not used up."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        allowances: Allowances,
        guesses: Guesses,
        is_stopping: Callable[[], bool],
        open_paths: Collection[str],
    ) -> None:
        self.app, self._keys, self._allowances, self._guesses = app, keys, allowances, guesses
        self._is_stopping, self._open_paths = is_stopping, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            request = Request(scope)
            try:
                if self._is_stopping():
                    raise ApiError(503, "The server is stopping.", code="stopping")
                headers = request.headers
                owner = self._keys.owner(headers.get("authorization", ""), headers.get("x-api-key", ""))
                self._allowances.check(owner)
            except ApiError as error:
                if error.status == 401:
                    await self._guesses.hold(request.client.host if request.client else "")
                await (await refusal(request, error))(scope, receive, send)
                return
            scope["herd.request"].owner = owner
        await self.app(scope, receive, send)


class Rate:
    """An allowance per minute that fills up evenly; one minute's worth can be saved up.

    What is spent may exceed what is there (an answer's length is known only afterwards): the debt is waited for.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._seen = float(per_minute), clock()

    @property
    def level(self) -> float:
        """What may be spent now; negative while a debt is open."""
        now = self._clock()
        self._level = min(self._level + (now - self._seen) * self.per_minute / 60, self.per_minute)
        self._seen = now
        return self._level

    def spend(self, amount: float) -> None:
        """Take from the allowance."""
        self._level = self.level - amount

    def wait_seconds(self, amount: float) -> float:
        """How long until this much is there; 0 if it is."""
        return max(min(amount, self.per_minute) - self.level, 0) * 60 / self.per_minute


class Allowances:
    """The requests and tokens that each key has left."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._rates: dict[tuple[str, str], Rate] = {}

    def check(self, owner: str) -> None:
        """Count a request.

        Raises:
            ApiError: 429, with the seconds to wait, when the key's requests or tokens are used up.
        """
        for what, amount in (("tokens", 1), ("requests", 1)):
            rate = self._rate(owner, what)
            if rate and (seconds := rate.wait_seconds(amount)):
                message = f"The limit of {rate.per_minute:g} {what} a minute is reached; try again in {seconds:.1f} s."
                raise ApiError(429, message, code="rate_limit_exceeded", retry_seconds=seconds)
        if rate := self._rate(owner, "requests"):
            rate.spend(1)

    def spend_tokens(self, owner: str, count: int) -> None:
        """Count the tokens of an answered request."""
        if rate := self._rate(owner, "tokens"):
            rate.spend(count)

    def headers(self, owner: str) -> list[tuple[bytes, bytes]]:
        """OpenAI's `x-ratelimit-*` headers for what is limited."""
        found = []
        for what in ("requests", "tokens"):
            if rate := self._rate(owner, what):
                found.append((f"x-ratelimit-limit-{what}".encode(), f"{rate.per_minute:g}".encode()))
                found.append((f"x-ratelimit-remaining-{what}".encode(), str(max(int(rate.level), 0)).encode()))
        return found

    def _rate(self, owner: str, what: str) -> Rate | None:
        per_minute = self._limits.requests_per_minute if what == "requests" else self._limits.tokens_per_minute
        if per_minute is None:
            return None
        return self._rates.setdefault((owner, what), Rate(per_minute, self._clock))


class Admission:
    """Bounds the answers that each engine has accepted and not delivered yet: running, or waiting in the queue.

    A finished answer that its client has not read still counts, so that slow readers cannot pile answers up.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most = most_waiting
        self._taken: Counter[Engine] = Counter()

    def admit(self, engine: Engine, count: int) -> None:
        """Accept `count` more answers; `release` them when they are delivered.

        Raises:
            ApiError: 400 if so many never fit, 429 if the queue is full now.
        """
        if count > self._most:
            message = f"{count} answers in one request; at most {self._most} are taken."
            raise ApiError(400, message, code="too_many_answers")
        waiting = max(self._taken[engine] - engine.num_running, 0)
        if waiting + count > self._most:
            message = f"{waiting} answers wait already, at most {self._most} may; try again soon."
            raise ApiError(429, message, code="queue_full")
        self._taken[engine] += count

    def release(self, engine: Engine, count: int) -> None:
        """`count` answers were delivered, or their client is gone."""
        self._taken[engine] -= count


UPLOADS = "/v1/files"


class BodyLimit:
    """Refuses bodies that are too large, whether they say so first or only turn out to be, or that take too long."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.limits.max_upload_bytes if scope.get("path") == UPLOADS else self.limits.max_body_bytes
        message = f"The body is larger than {most:,} bytes."
        headers = dict(scope["headers"])
        if not headers.get(b"content-type", b"").strip():
            # older FastAPI reads it as JSON then, and a web page elsewhere may send such a body unasked
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*kept, (b"content-type", b"application/octet-stream")]}
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            await (await refusal(Request(scope), ApiError(413, message)))(scope, receive, send)
            return
        received, whole = 0, False
        until = asyncio.get_running_loop().time() + self.limits.body_seconds

        async def counted() -> Message:
            nonlocal received, whole
            try:
                async with asyncio.timeout_at(None if whole else until):
                    part = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The body did not arrive within {self.limits.body_seconds:g} s.") from None
            received += len(part.get("body", b""))
            whole = whole or not part.get("more_body", False)
            if received > most:
                raise HTTPException(413, message)
            return part

        await self.app(scope, counted, send)


class HostCheck:
    """Answers only under the server's own names: a page elsewhere cannot reach it by pointing its own name here."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = given.rpartition(":")[0] if given.rpartition(":")[2].isdigit() else given
            if name.strip("[]").lower() not in self.hosts:
                message = (
                    f"This server listens on this machine only and does not answer as {name!r}; "
                    "give it a key (key=...) to let it answer under any name."
                )
                await (await refusal(Request(scope), ApiError(421, message)))(scope, receive, send)
                return
        await self.app(scope, receive, send)
