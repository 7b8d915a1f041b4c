"""Keys, rates, times, host names, and what is written down."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time

import httpx
import pytest

from herd.errors import RequestError
from herd.serve.app import create_app
from herd.serve.client import Client
from herd.serve.journal import Journal
from herd.serve.limits import Allowances, Limits, Rate
from herd.serve.record import RequestRecord
from tests.serve.conftest import Running, chat_engine, listening

CHAT = {"messages": [{"role": "user", "content": "a secret"}], "max_tokens": 5, "temperature": 0}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_an_allowance_fills_up_evenly_and_debts_are_waited_for():
    now = [0.0]
    rate = Rate(60, lambda: now[0])
    rate.spend(60)
    assert rate.wait_seconds(1) == pytest.approx(1)
    now[0] = 10
    assert rate.level == pytest.approx(10) and rate.wait_seconds(5) == 0
    rate.spend(40)
    assert rate.wait_seconds(1) == pytest.approx(31)
    now[0] = 1000
    assert rate.level == 60


def test_each_key_has_an_allowance_of_its_own():
    now = [0.0]
    allowances = Allowances(Limits(requests_per_minute=1, tokens_per_minute=100), lambda: now[0])
    allowances.check("a")
    with pytest.raises(Exception, match="1 requests a minute") as error:
        allowances.check("a")
    assert error.value.status == 429 and error.value.retry_seconds == pytest.approx(60)
    allowances.check("b")
    allowances.spend_tokens("b", 300)
    now[0] = 61
    with pytest.raises(Exception, match="100 tokens a minute"):
        allowances.check("b")


def test_keys_have_names_and_limits_and_both_are_told():
    out = io.StringIO()
    app = create_app(
        chat_engine(),
        name="tiny",
        keys={"anna": "key-a", "ben": "key-b"},
        limits=Limits(requests_per_minute=2),
        journal=Journal("json", stream=out),
    )
    with listening(app) as url:
        first = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=bearer("key-a"))
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert httpx.get(f"{url}/v1/models", headers=bearer("key-a")).status_code == 200
        refused = httpx.get(f"{url}/v1/models", headers=bearer("key-a"))
        assert refused.status_code == 429 and 20 <= int(refused.headers["retry-after"]) <= 31
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert httpx.get(f"{url}/v1/models", headers=bearer("key-b")).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers=bearer("key-c")).headers["www-authenticate"] == "Bearer"
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["owner"] for line in lines] == ["anna", "anna", None, "ben", None]
    assert [line["status"] for line in lines] == [200, 200, 429, 200, 401]
    assert lines[0]["completion_tokens"] == 5 and lines[0]["model"] == "tiny" and lines[0]["finish"] == "length"
    assert lines[0]["id"] == first.headers["x-request-id"]


@pytest.mark.parametrize("key", ["clé", "voilà", "\u0141\u00c5", "ключ 🦙", "pass word", "a\udcffb"])
def test_keys_may_hold_any_characters(monkeypatch, key):
    """In UTF-8 the last byte of "à" looks like a space to Latin-1; an environment variable may hold any byte."""
    monkeypatch.setenv("HERD_KEY", key)
    with listening(create_app(chat_engine(), name="tiny", keys={"anna": key, "ben": "other"})) as url:
        sent = f"Bearer {key}".encode("utf-8", "surrogateescape")
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": sent}).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": sent[:-1]}).status_code == 401
        assert Client(url).model == "tiny"
        if key.isascii() or key in ("clé", "voilà"):
            sent = f"Bearer {key}".encode("latin-1")
            assert httpx.get(f"{url}/v1/models", headers={"Authorization": sent}).status_code == 200
        monkeypatch.setenv("HERD_KEY", "line\nbreak")
        with pytest.raises(RequestError, match="line break") as error:
            Client(url)
        assert "line\nbreak" not in str(error.value)


@pytest.mark.parametrize("with_text", [False, True])
def test_what_people_write_is_logged_only_where_asked_for(with_text):
    out = io.StringIO()
    with listening(
        create_app(chat_engine(), name="tiny", journal=Journal("json", with_text=with_text, stream=out))
    ) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
        httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True})
        httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"a secret": 1})
    first, second, third = (json.loads(line) for line in out.getvalue().splitlines())
    assert ("a secret" in out.getvalue()) is with_text
    assert third["error"] == "unknown_field" and third["status"] == 400
    if with_text:
        assert first["answered"] == second["answered"] == [answer]


def test_the_log_for_people_is_one_short_line():
    out = io.StringIO()
    with listening(create_app(chat_engine(), name="tiny", journal=Journal("text", stream=out))) as url:
        httpx.post(f"{url}/v1/chat/completions", json=CHAT)
        httpx.get(f"{url}/health")
        httpx.get(f"{url}/%0A12:00:00%20%20200%20%20forged%1b[31m")
    line, other = out.getvalue().splitlines()
    assert "404" in other and "\\n12:00" in other and "\x1b" not in other
    assert "200" in line and "/v1/chat/completions" in line and "-> 5 tokens" in line and "secret" not in line


def test_a_log_that_nobody_reads_any_more_fails_no_request():
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Journal("text", stream=Closed()).write(RequestRecord("/v1/models", status=200))


def test_an_answer_that_takes_too_long_is_cancelled(monkeypatch):
    engine = chat_engine()
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step()))
    with listening(create_app(engine, name="tiny", limits=Limits(timeout_seconds=0.3))) as url:
        body = CHAT | {"max_tokens": 200, "stop": []}
        response = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
        streamed = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}).text
        assert json.loads(streamed.strip().split("\n\n")[-1][6:])["error"]["code"] == "timeout"
        Running(url, engine).wait_until_idle()


def test_a_client_that_does_not_read_its_stream_is_cut_off_without_a_fault(monkeypatch):
    monkeypatch.setattr("herd.serve.streams._READING_SECONDS", 0.2)
    out, engine = io.StringIO(), chat_engine()
    app = create_app(engine, name="tiny", limits=Limits(timeout_seconds=0.2), journal=Journal("json", stream=out))
    body = [{"type": "http.request", "body": json.dumps(CHAT | {"stream": True}).encode()}]
    headers = [(b"content-type", b"application/json"), (b"host", b"x")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}

    async def receive():
        return body.pop() if body else await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # nobody ever takes it

    app.state.server.worker.start()
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))
    app.state.server.worker.stop()
    assert json.loads(out.getvalue())["error"] == "not_read"
    Running("", engine).wait_until_idle()


def test_a_body_that_does_not_arrive_is_given_up():
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    app = create_app(chat_engine(), name="tiny", limits=Limits(body_seconds=0.2))
    with listening(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(head + b"{")
        connection.settimeout(5)
        assert b" 408 " in connection.recv(1000).split(b"\r\n")[0]


def test_only_the_servers_own_names_are_answered_where_they_are_given():
    with listening(create_app(chat_engine(), name="tiny", hosts=["127.0.0.1", "localhost", "::1"])) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 200
        for host in ("localhost:8000", "[::1]:8000", "LOCALHOST"):
            assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            refused = httpx.get(f"{url}/v1/models", headers={"Host": host})
            assert refused.status_code == 421 and "key" in refused.json()["error"]["message"]


def test_a_stopping_server_takes_nothing_new_and_tells_whom_it_cuts(monkeypatch):
    engine = chat_engine()
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step()))
    app = create_app(engine, name="tiny")
    with listening(app) as url:
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=CHAT | {"max_tokens": 200, "stream": True}
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            app.state.server.stop_taking()
            refused = httpx.get(f"{url}/v1/models")
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert httpx.get(f"{url}/health").json()["status"] == "stopping"
            app.state.server.cut()
            last = [line for line in lines if line.startswith("data:")][-1]
        assert json.loads(last[6:])["error"]["code"] == "stopping"
        Running(url, engine).wait_until_idle()


def test_metrics_count_requests_tokens_and_times():
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    with listening(create_app(chat_engine(), name="tiny")) as url:
        for stream in (False, True):
            httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": stream})
        httpx.get(f"{url}/nothing/{time.time()}")
        lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert values['herd_requests_total{path="/v1/chat/completions",status="200"}'] == 2
    assert values['herd_requests_total{path="other",status="404"}'] == 1
    assert values['herd_generated_tokens_total{model="tiny"}'] == 10
    assert values['herd_answers_total{model="tiny",reason="length"}'] == 2
    assert values['herd_first_token_seconds_count{model="tiny"}'] == 2
    assert values['herd_running{model="tiny"}'] == 0 and values['herd_cache_free_share{model="tiny"}'] == 1


def test_without_the_library_metrics_say_what_is_missing(monkeypatch):
    monkeypatch.setattr("herd.serve.metrics.prometheus_client", None)
    with listening(create_app(chat_engine(), name="tiny")) as url:
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        missing = httpx.get(f"{url}/metrics")
        assert missing.status_code == 501 and "prometheus-client" in missing.json()["error"]["message"]
