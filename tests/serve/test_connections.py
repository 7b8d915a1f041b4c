"""Connections that wait, trickle or do not read: others are served, and the log stays small."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from herd.formats.checkpoint import save
from herd.serve.connections import Sparing
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.load import Process, serving

ASK = {"prompt": "a", "max_tokens": 2}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tokenizer = small_tokenizer()
    place = tmp_path_factory.mktemp("served") / "tiny"
    save(tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=8192), place, tokenizer)
    return place


@pytest.fixture(scope="module")
def narrow(folder) -> Iterator[Process]:
    words = ("limits.header_seconds=2", "limits.stalled_seconds=1", "log.form=text")
    with serving(folder, *words, files=256) as server:
        yield server


def connect(server: Process) -> socket.socket:
    return socket.create_connection(("localhost", int(server.url.rpartition(":")[2])), timeout=10)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


def test_idle_connections_beyond_the_limit_of_files_keep_nobody_out(narrow):
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(narrow)) for _ in range(300)]
        for _ in range(3):
            assert httpx.post(narrow.url + "/v1/completions", json=ASK, timeout=10).status_code == 200
        for connection in idle:  # and more, that say half a word
            with contextlib.suppress(OSError):
                connection.sendall(b"POST ")
        more = [stack.enter_context(connect(narrow)) for _ in range(300)]
        assert httpx.post(narrow.url + "/v1/completions", json=ASK, timeout=10).status_code == 200
        assert all(map(is_closed, [*idle, *more]))  # by the deadline for a head at the latest
    assert narrow.log.stat().st_size < 10_000


def test_a_head_that_trickles_has_one_deadline(narrow):
    for before in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):  # the first request, and a later one
        with connect(narrow) as connection:
            connection.sendall(before)
            if before:
                assert b"200 OK" in connection.recv(10_000)
            with pytest.raises(ConnectionError):
                for _ in range(200):
                    connection.sendall(b"G")
                    time.sleep(0.1)


def test_who_does_not_read_is_left(narrow):
    body = b'{"input": [' + b'"a", ' * 2000 + b'"a"]}'
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("localhost", int(narrow.url.rpartition(":")[2])))
        head = HEAD.replace(b"completions", b"embeddings") + b"Content-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        connection.settimeout(120)
        assert connection.recv(1, socket.MSG_PEEK)  # from now on it is written to
        time.sleep(6)
        read = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := connection.recv(1 << 20):
                read += part
        assert not read.rstrip().endswith(b"]}\r\n0")  # it was not waited for


def test_refusals_by_the_thousand_write_few_lines(narrow):
    before = narrow.log.stat().st_size
    with httpx.Client(base_url=narrow.url) as client:
        for number in range(1000):
            assert client.get(f"/nothing/{number}").status_code == 404
    for _ in range(300):
        with connect(narrow) as connection:
            connection.sendall(b"\x00\r\n\r\n")
            assert b"400" in connection.recv(1000)
    assert httpx.post(narrow.url + "/v1/completions", json=ASK, timeout=10).status_code == 200
    text = narrow.log.read_text()
    assert 0 < len(text) - before < 60_000 and "left out before" in text


def test_what_is_left_out_of_a_log_is_counted():
    now = [0.0]
    sparing = Sparing(2, lambda: now[0])
    lines = [logging.makeLogRecord({"msg": "line %s", "args": (i,)}) for i in range(6)]
    assert [sparing.filter(line) for line in lines[:5]] == [True, True, False, False, False]
    now[0] = 1.5
    assert sparing.filter(lines[5]) and lines[5].getMessage() == "(3 lines left out before) line 5"
