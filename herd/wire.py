"""HTTP for a client that trusts no server: every wait has a deadline, every answer a size limit.

`urllib` restarts its timeout with every byte, sends the key along when it follows a redirect, and has no size limit.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import ssl
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from herd.errors import CapacityError, RequestError, UserError

_PIECE_BYTES = 65_536
_REASON_BYTES, _REASON_LETTERS = 65_536, 300
_CONNECT_SECONDS = 30.0


class Fault(Exception):
    """An error of one exchange; `transient` ones may be retried, after the `wait` seconds that the server asked for."""

    def __init__(self, error: UserError, *, transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.transient, self.wait = error, transient, wait


def unexpected(what: str, *, transient: bool = False) -> Fault:
    """The fault for an answer in an unexpected form."""
    return Fault(CapacityError(f"does not answer as an OpenAI-compatible endpoint: {what}"), transient=transient)


class Clock:
    """The deadline of a call; `silence_seconds` is the longest wait for the next bytes."""

    def __init__(self, seconds: float, silence_seconds: float | None = None) -> None:
        self.seconds, self._until, self._silence = seconds, time.monotonic() + seconds, silence_seconds or seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self._until - time.monotonic())

    def wait(self) -> float:
        """The longest wait for the next bytes, in seconds.

        Raises:
            TimeoutError: the deadline has passed.
        """
        if not (left := self.left):
            raise TimeoutError
        return min(left, self._silence)

    def limit(self) -> str:
        """A message with the limit that was reached."""
        limit = self._silence if self.left else self.seconds
        return f"timed out: it {'was silent for' if self.left else 'had not answered after'} {limit:g} s"


class Wire:
    """Connections to one address, through the proxy that the environment sets for it (`https_proxy`, `no_proxy`).

    Raises:
        RequestError: the address is not a plain http or https URL.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url, self._headers = url.rstrip("/"), headers
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            is_clean = url.isascii() and url.isprintable() and " " not in url
        except ValueError:
            host, port, is_clean = None, None, False
        if not host or not is_clean or parts.scheme not in ("http", "https"):
            raise RequestError(f"{url!r}: expected the address of an endpoint, such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RequestError(f"{parts.scheme}://{host}: the address of an endpoint holds no name, password, ? or #")
        self._is_safe, self._path = parts.scheme == "https", parts.path.rstrip("/")
        self._host, self._port = host, port or (443 if self._is_safe else 80)
        self._trust = ssl.create_default_context() if self._is_safe else None

    def send(self, path: str, body: bytes | None, clock: Clock) -> Exchange:
        """Send a request and read the head of its answer.

        Raises:
            Fault: the connection failed, or no answer came.
        """
        with faults(clock):
            connection, target, headers = self._connection(clock)
            headers |= self._headers | {"Accept": "application/json, text/event-stream", "User-Agent": "herd"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                if isinstance(error, ssl.SSLCertVerificationError):
                    message = f"has a certificate that this machine does not trust: {error.verify_message}"
                    raise Fault(CapacityError(message)) from None
                message = f"cannot be reached ({error.strerror or error or 'timed out'}); is the server running?"
                raise Fault(CapacityError(message), transient=not isinstance(error, TimeoutError)) from None
            opened = connection.sock
            connection.sock = _TimedSocket(opened, clock)
            try:
                with suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # it may answer before it has read the whole request
                    connection.request("GET" if body is None else "POST", target + path, body, headers)
                return Exchange(connection.getresponse(), opened, clock)
            except BaseException:
                opened.close()
                raise

    def _connection(self, clock: Clock) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        scheme, seconds = "https" if self._is_safe else "http", min(clock.wait(), _CONNECT_SECONDS)
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy or urllib.request.proxy_bypass(self._host):
            return self._direct(self._host, self._port, seconds), self._path, {}
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if not parts.hostname:
            raise Fault(CapacityError(f"cannot be reached: the variable {scheme}_proxy holds no address"))
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        headers = {"Proxy-Authorization": f"Basic {b64encode(login).decode()}"} if parts.username else {}
        connection = self._direct(parts.hostname, parts.port or 80, seconds)
        if not self._is_safe:
            return connection, self.url, headers
        connection.set_tunnel(self._host, self._port, headers)
        return connection, self._path, {}

    def _direct(self, host: str, port: int, seconds: float) -> http.client.HTTPConnection:
        if self._is_safe:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=self._trust)
        return http.client.HTTPConnection(host, port, timeout=seconds)


class Exchange:
    """A request whose answer has begun to arrive. Must be closed."""

    def __init__(self, response: http.client.HTTPResponse, opened: socket.socket, clock: Clock) -> None:
        self._response, self._socket, self._clock = response, opened, clock
        self.status = response.status

    def close(self) -> None:
        """Close the connection, even if the answer is not complete."""
        self._socket.close()

    def header(self, name: str) -> str:
        """A header of the answer, empty if missing."""
        return self._response.getheader(name) or ""

    def whole(self, max_bytes: int) -> bytes:
        """The whole answer.

        Raises:
            Fault: it is too large, is cut off, or takes too long.
        """
        return b"".join(self._pieces(max_bytes))

    def events(self, max_bytes: int) -> Iterator[bytes]:
        """The data of server-sent events, as OpenAI sends them: one line each.

        Raises:
            Fault: as `whole`.
        """
        begun = bytearray()
        for piece in self._pieces(max_bytes):
            *lines, rest = piece.split(b"\n")
            for line in lines:
                begun += line
                if begun.startswith(b"data:") and (data := bytes(begun[5:]).strip()):
                    yield data
                begun.clear()
            begun += rest
        if begun.startswith(b"data:") and (data := bytes(begun[5:]).strip()):
            yield data

    def reason(self) -> str:
        """The error message of a refused request."""
        try:
            data = b"".join(self._pieces(_REASON_BYTES))
        except Fault:
            return self._response.reason
        with suppress(ValueError, RecursionError):
            return reason(json.loads(data))[:_REASON_LETTERS] or self._response.reason
        text = " ".join(data.decode(errors="replace").split())
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE)
        return (f"a web page, {title[1].strip()!r}" if title else text or self._response.reason)[:_REASON_LETTERS]

    def retry_after(self) -> float:
        """Seconds after which the server wants a retry; 0 if it does not say."""
        said = self.header("Retry-After").strip()
        with suppress(ValueError, TypeError, OverflowError):
            if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", said):
                return float(said)
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        return 0.0

    def _pieces(self, max_bytes: int) -> Iterator[bytes]:
        response, num_bytes = self._response, 0
        while True:
            with faults(self._clock):
                piece = response.read1(_PIECE_BYTES)
            num_bytes += len(piece)
            if num_bytes > max_bytes or (response.length or 0) > max_bytes:
                raise Fault(CapacityError(f"answers with more than {max_bytes:,} bytes, which is the limit"))
            if not piece:
                break
            yield piece
        if response.length:  # of what was announced
            raise Fault(CapacityError("ended its answer early"), transient=True)


class _TimedSocket:
    """The socket interface that `http.client` needs, with timeouts from the clock."""

    def __init__(self, opened: socket.socket, clock: Clock) -> None:
        self._socket, self._clock = opened, clock

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._clock.wait())
        self._socket.sendall(data)

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReads(self._socket, self._clock), _PIECE_BYTES)

    def close(self) -> None:
        """The exchange closes it."""


class _TimedReads(io.RawIOBase):
    def __init__(self, opened: socket.socket, clock: Clock) -> None:
        self._socket, self._clock = opened, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._clock.wait())
        return self._socket.recv_into(buffer)


@contextmanager
def faults(clock: Clock) -> Iterator[None]:
    """Turn the errors that Python raises on the way into `Fault`."""
    try:
        yield
    except TimeoutError:
        raise Fault(CapacityError(clock.limit())) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        message = f"closed the connection ({str(error) or type(error).__name__})"
        if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
            message = f"does not answer in valid HTTP ({type(error).__name__})"
        raise Fault(CapacityError(message), transient=True) from None


def parsed(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Fault: it is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise unexpected(data[:200].decode(errors="replace") or "an empty answer", transient=True) from None


def reason(body: Any) -> str:
    """The message of an error object, in any of the forms that servers give it."""
    message = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(message, dict):
        message = message.get("message") or message.get("detail") or message
    return message if isinstance(message, str) else json.dumps(message)
