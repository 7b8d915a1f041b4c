"""The client of OpenAI-compatible endpoints, against servers that behave well and servers that do not."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
import time

import pytest

from herd.endpoint import Endpoint, Patience, Prices
from herd.errors import CapacityError, DataError, RequestError, UserError
from tests.scripted import Scripted, answer, events, http, piece, said

QUESTION = [{"role": "user", "content": "Why?"}]
QUICK = Patience(seconds=20, tries=3, pause_seconds=0.001)


def text_of(server: Scripted, patience: Patience = QUICK, **options) -> str:
    return Endpoint(server.url, patience=patience, **options).complete(QUESTION, model="m").choices[0].text


# ---- what works ------------------------------------------------------------------------------------------------------


def test_a_question_is_sent_as_openai_writes_it_and_answered():
    with Scripted(answer("Because.")) as server:
        endpoint = Endpoint(server.url + "/", key="sesame-ключ")
        found = endpoint.complete(QUESTION, model="m", max_tokens=5)
    assert found.choices[0].text == "Because." and found.choices[0].finish_reason == "stop"
    assert (found.prompt_tokens, found.completion_tokens) == (7, 3)
    first, headers, body = server.requests[0]
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert headers["authorization"].encode("latin-1").decode() == "Bearer sesame-ключ"
    assert json.loads(body) == {"model": "m", "max_tokens": 5, "messages": QUESTION}


def test_calls_and_what_tools_answered_carry_the_same_ids():
    conversation = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1}}] * 2},
        {"role": "ipython", "content": "2"},
        {"role": "ipython", "content": "3"},
    ]
    with Scripted(answer("5")) as server:
        Endpoint(server.url).complete(conversation, model="m")
    sent = json.loads(server.requests[0][2])["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == [message["tool_call_id"] for message in sent[2:]]
    assert sent[2]["role"] == "tool" and sent[1]["tool_calls"][0]["function"] == {
        "name": "add",
        "arguments": '{"a": 1}',
    }


def test_log_probabilities_come_with_tokens_as_text_in_both_dialects():
    chat = {"content": [{"token": "B", "logprob": -0.5, "top_logprobs": [{"token": "A", "logprob": -0.1}]}]}
    plain = {"tokens": ["x", "y"], "token_logprobs": [None, -2.0], "top_logprobs": None, "text_offset": [0, 1]}
    echoed = {"choices": [{"index": 0, "text": "xy", "logprobs": plain, "finish_reason": "length"}]}
    with Scripted(answer("B", logprobs=chat), http(json.dumps(echoed))) as server:
        endpoint = Endpoint(server.url)
        (token,) = endpoint.complete(QUESTION, logprobs=1).choices[0].tokens
        first, second = endpoint.complete("xy", logprobs=0, echo=True).choices[0].tokens
    assert (token.text, token.logprob, token.top) == ("B", -0.5, (("A", -0.1),))
    assert (first.logprob, second.logprob, second.offset) == (None, -2.0, 1)
    asked = [json.loads(body) for _, _, body in server.requests]
    assert asked[0]["logprobs"] is True and asked[0]["top_logprobs"] == 1 and asked[1]["logprobs"] == 0
    assert endpoint.count.requests == 2 and endpoint.count.uncounted == 1


@pytest.mark.parametrize("length", [True, False])
def test_pieces_arrive_one_by_one(length):
    usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    with Scripted(events(piece("One"), piece(" two"), piece("", "stop"), usage, length=length)) as server:
        endpoint = Endpoint(server.url)
        found = list(endpoint.pieces(QUESTION, model="m"))
    assert [choice.text for choice in found] == ["One", " two", ""] and found[-1].finish_reason == "stop"
    assert json.loads(server.requests[0][2])["stream"] is True
    assert (endpoint.count.prompt_tokens, endpoint.count.completion_tokens, endpoint.count.uncounted) == (4, 2, 0)


def test_events_are_whole_however_the_network_cuts_them():
    content = events(piece("naïve "), piece("été"), length=False).replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")

    def trickle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(content)):
            connection.sendall(content[place : place + 1])

    with Scripted(trickle) as server:
        assert "".join(choice.text for choice in Endpoint(server.url).pieces(QUESTION)) == "naïve été"


def test_a_stream_that_is_left_early_closes_its_connection():
    closed = threading.Event()

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                connection.sendall(f"data: {json.dumps(piece('on '))}\n\n".encode())
        except OSError:
            closed.set()

    with Scripted(endless) as server:
        stream = Endpoint(server.url).pieces(QUESTION)
        assert next(stream).text == "on "
        stream.close()
        assert closed.wait(10)


def test_half_characters_are_replaced():
    with Scripted(http(r'{"choices": [{"message": {"content": "a\ud800b"}}]}')) as server:
        assert text_of(server) == "a\N{REPLACEMENT CHARACTER}b"


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_many_are_answered_at_once_in_order_and_within_the_bound():
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(4, timeout=20)

    def ask(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        return number * 2

    endpoint = Endpoint("http://localhost/v1", num_at_once=4)
    assert list(endpoint.each(ask, range(40))) == [2 * number for number in range(40)]
    assert most == 4


def test_endless_work_is_begun_a_little_ahead_and_left_without_waiting():
    begun, release = [], threading.Event()

    def ask(number: int) -> int:
        begun.append(number)
        if number == 3:
            release.wait(30)
        return number

    stream = Endpoint("http://localhost/v1", num_at_once=2).each(ask, itertools.count())
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()  # with number 3 under way
    release.set()
    assert max(begun) < 20


def test_the_first_fault_ends_the_others():
    with Scripted(answer("a"), http("no", status="400 Bad Request")) as server:
        endpoint = Endpoint(server.url, patience=QUICK, num_at_once=1)
        stream = endpoint.each(lambda item: endpoint.complete(item), [QUESTION] * 1000)
        with pytest.raises(RequestError, match="refused the request"):
            list(stream)
    assert len(server.requests) < 20


# ---- the cache and the count -----------------------------------------------------------------------------------------


def test_the_same_request_is_sent_once_whatever_the_key(tmp_path):
    with Scripted(answer("one"), answer("two"), answer("three")) as server:
        for key in ("secret-1", "secret-2"):
            endpoint = Endpoint(server.url, key=key, cache=tmp_path)
            assert endpoint.complete(QUESTION, model="m", seed=1).choices[0].text == "one"
        assert endpoint.count.cached == 1 and endpoint.count.requests == 0 and endpoint.count.prompt_tokens == 0
        assert endpoint.complete(QUESTION, model="m", seed=2).choices[0].text == "two"
        assert Endpoint(server.url + "x", cache=tmp_path).complete(QUESTION, model="m").choices[0].text == "three"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3 and not any(b"secret" in file.read_bytes() or "secret" in str(file) for file in files)


def test_what_is_no_answer_is_not_kept_and_a_damaged_one_is_told_of(tmp_path):
    with Scripted(http("{}"), answer("right")) as server:
        assert text_of(server, cache=tmp_path) == "right"
        (file,) = tmp_path.rglob("*.json")
        for damaged in ("{", "{}"):
            file.write_text(damaged)
            with pytest.raises(DataError, match="delete it"):
                text_of(server, cache=tmp_path)
    assert len(server.requests) == 2


def test_one_request_by_many_threads_is_kept_whole(tmp_path):
    with Scripted(answer("x" * 10_000)) as server:
        endpoint = Endpoint(server.url, cache=tmp_path)
        found = list(endpoint.each(lambda item: endpoint.complete(item).choices[0].text, [QUESTION] * 60))
    assert set(found) == {"x" * 10_000} and endpoint.count.cached + endpoint.count.requests == 60
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1


def test_tokens_cost_and_tries_are_counted():
    with Scripted(http("busy", status="503 Busy"), answer("a")) as server:
        endpoint = Endpoint(server.url, patience=QUICK, prices=Prices(prompt=1e6, completion=2e6))
        for _ in range(2):
            endpoint.complete(QUESTION)
    assert (endpoint.count.requests, endpoint.count.tries, endpoint.count.cost) == (2, 3, 2 * (7 + 2 * 3))
    assert str(endpoint.count) == "2 requests (1 retried), 14 + 6 tokens, cost 26.00"
    with pytest.raises(ValueError, match="negative"):
        Prices(prompt=-1)


# ---- servers that behave badly ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", ["429 Too Many Requests", "500 Oops", "502 Bad Gateway", "503 Busy", "529 Overloaded"]
)
def test_a_busy_server_is_asked_again(status):
    with Scripted(http("later", status=status), http("later", status=status), answer("now")) as server:
        assert text_of(server) == "now"


def test_a_server_that_is_always_busy_is_left_in_one_sentence():
    busy = http('{"error": {"message": "slow down"}}', status="429 Too Many Requests")
    refused = r"refused the request \(429\): slow down .*after 3 tries"
    with Scripted(busy) as server, pytest.raises(RequestError, match=refused):
        text_of(server)
    assert len(server.requests) == 3


@pytest.mark.parametrize("when", ["3600", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_to_come_back_after_the_deadline_is_left_at_once(when):
    busy = http("later", status="429 Too Many Requests", extra=f"Retry-After: {when}\r\n")
    with Scripted(busy) as server, pytest.raises(RequestError, match="asks to retry in"):
        text_of(server)
    assert len(server.requests) == 1


def test_a_server_is_given_the_time_that_it_asks_for(monkeypatch):
    pauses = []
    monkeypatch.setattr("herd.endpoint.time.sleep", pauses.append)
    busy = http("later", status="429 Too Many Requests", extra="Retry-After: 0.3\r\n")
    with Scripted(busy, answer("now")) as server:
        assert text_of(server) == "now"
    assert pauses == [0.3]


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silence(connection: socket.socket) -> None:
    connection.settimeout(30)
    connection.recv(1)  # until the client goes


def trickling(head: bytes, drop: bytes, pause: float = 0.02):
    def act(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(3000):
            connection.sendall(drop)
            time.sleep(pause)

    return act


def endless(head: bytes, drop: bytes):
    def act(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)

    return act


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CUT = answer("cut")[:-20]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (b"", "closed the connection"),
        (reset, "closed the connection"),
        (CUT, "ended its answer early"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{\"cho", "does not answer in valid HTTP|ended"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "does not answer in valid HTTP"),
        (b"SSH-2.0-OpenSSH_9\r\n", "does not answer in valid HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500, "does not answer in valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "does not answer in valid HTTP"),
        (http("<html><body>It works!", kind="text/html"), "OpenAI-compatible endpoint: <html>"),
        (http('{"choices": ['), "OpenAI-compatible"),
        (http(""), "an empty answer"),
        (http("[" * 100_000), "OpenAI-compatible"),
        (http("1" * 10_000), "OpenAI-compatible"),
        (http(b"\xff\xfe\x00"), "OpenAI-compatible"),
        *((http(json.dumps(found)), "OpenAI-compatible") for found in (
            None, [], {}, {"choices": None}, {"choices": 5}, {"choices": ["a"]}, {"choices": [{}]}, {"error": "x"},
            {"choices": [{"message": "hi"}]}, {"choices": [{"message": {"content": 5}}]},
            said("x", logprobs={"content": [{}]}), said("x", logprobs={"content": 5}),
            said("x", logprobs={"token_logprobs": [1, 2], "tokens": ["a"]}),
        )),
        (http("<title>504 Gateway\n Time-out</title>", status="504 x"), r"\(504\): a web page, '504 Gateway Time-out'"),
        (http('{"detail": "nobody\\u001b[2J here"}', status="404 x"), r"\(404\): nobody \[2J here"),
        (http("", status="401 Unauthorized"), r"\(401\): Unauthorized"),
        (http("", status="307 x", extra="Location: http://elsewhere/v1\r\n"), "redirects .http://elsewhere/v1"),
        (http("", status="204 No Content"), "an empty answer"),
    ],
    ids=lambda value: None if callable(value) else str(value)[:60],
)  # fmt: skip
def test_what_is_no_answer_is_one_sentence(act, message):
    with Scripted(act) as server, pytest.raises(UserError, match=message) as error:
        text_of(server)
    assert str(error.value).startswith(server.url) and "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "act",
    [
        silence,
        trickling(HEAD + b"Content-Length: 5000\r\n\r\n", b" "),
        trickling(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        trickling(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        trickling(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05),
        trickling(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["silence", "length", "chunks", "header", "headers", "continue", "continue for ever"],
)
def test_no_server_holds_a_client_beyond_its_deadline(act):
    with Scripted(act) as server, pytest.raises(CapacityError, match=r"timed out: it had not answered after 0\.5 s"):
        text_of(server, Patience(seconds=0.5))
    assert len(server.requests) == 1


def test_silence_within_the_deadline_is_waited_for_as_long_as_one_likes():
    patience = Patience(seconds=60, silence_seconds=0.3)
    opened = b"HTTP/1.1 200 OK\r\n\r\ndata: " + json.dumps(piece("One")).encode() + b"\n\n"

    def then_silence(connection: socket.socket) -> None:
        connection.sendall(opened)
        silence(connection)

    with Scripted(then_silence) as server, pytest.raises(CapacityError, match=r"silent for 0\.3 s"):
        list(Endpoint(server.url, patience=patience).pieces(QUESTION))


@pytest.mark.parametrize(
    "act",
    [
        HEAD + b"Content-Length: 10000000000\r\n\r\n{",
        endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"),
        endless(HEAD + b"\r\n", b"data: " + b"x" * 60_000),
        endless(HEAD + b"\r\n", b": still here\n" * 5000),
    ],
    ids=["announced", "chunks", "one line", "comments"],
)
def test_no_answer_fills_the_client(act):
    patience = Patience(seconds=30, max_bytes=1_000_000)
    for stream in (False, True):
        with Scripted(act) as server, pytest.raises(CapacityError, match="more than 1,000,000 bytes"):
            endpoint = Endpoint(server.url, patience=patience)
            list(endpoint.pieces(QUESTION)) if stream else endpoint.complete(QUESTION)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (events(piece("a"), done=False), "cut off"),
        (events(piece("a"), done=False, length=False), "cut off"),
        (answer("not streamed"), "no stream of events"),
        (http("<html>", kind="text/html"), "no stream of events"),
        (events("{"), "OpenAI-compatible"),
        (events(5), "no object"),
        (events({"choices": [{"delta": 5}]}), "OpenAI-compatible"),
        (events({"error": {"message": "out of memory"}}), "out of memory"),
        (events({"error": "out of luck"}), "out of luck"),
        (events(piece("a"), piece("b"))[:-30], "ended its answer early"),
    ],
    ids=str,
)
def test_a_stream_that_is_none_or_not_whole_is_told_of(content, message):
    with Scripted(content) as server, pytest.raises(UserError, match=message):
        list(Endpoint(server.url, patience=QUICK).pieces(QUESTION))
    assert len(server.requests) == 1


def test_the_key_goes_to_its_address_alone_and_is_never_shown():
    with Scripted(answer("mine")) as other:
        moved = http("", status="302 Found", extra=f"Location: {other.url}\r\n")
        with Scripted(moved) as server, pytest.raises(RequestError, match="give that address instead"):
            text_of(server, key="sesame")
    assert other.requests == []
    refused = http('{"error": {"message": "Incorrect key: sesame"}}', status="401 Unauthorized")
    with Scripted(refused) as server, pytest.raises(RequestError, match=r"Incorrect key: \.\.\."):
        text_of(server, key="sesame")
    with pytest.raises(RequestError, match="line break") as error:
        Endpoint("http://localhost/v1", key="sesame\nX: y")
    assert "sesame" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host/v1", "file:///etc/passwd", "http://", "http://host:x/v1", "http://[::1/v1",
     "http://ho st/v1", "http://host/v1\r\nX: y", "http://host/v1?key=1", "http://me:secret@host/v1", ""],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(RequestError, match="address of an endpoint") as error:
        Endpoint(url)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_is_told_of_after_some_tries():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    endpoint = Endpoint(url, patience=QUICK)
    with pytest.raises(CapacityError, match=r"cannot be reached .*is the server running\? \(after 3 tries\)"):
        endpoint.complete(QUESTION)
    assert endpoint.count.tries == 3


def test_a_refusal_is_heard_although_the_request_was_not_read(tmp_path):
    def refuse(connection: socket.socket) -> None:
        connection.sendall(http('{"error": "too large"}', status="413 Too Large"))
        connection.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(100)
                refuse(connection)
                while connection.recv(1_000_000):
                    pass

        threading.Thread(target=serve, daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", patience=QUICK)
        with pytest.raises(RequestError, match=r"\(413\): too large"):
            endpoint.complete([{"role": "user", "content": "x" * 5_000_000}])


def test_a_proxy_of_the_environment_is_used_and_told_where_to(monkeypatch):
    with Scripted(answer("by way of the proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1").replace("http://", "http://me:pass@"))
        monkeypatch.setenv("no_proxy", "localhost")
        found = Endpoint("http://far.invalid/v1", key="k").complete(QUESTION).choices[0].text
        assert found == "by way of the proxy"
        with pytest.raises(CapacityError, match="cannot be reached"):
            Endpoint("http://localhost:9/v1", patience=QUICK).complete(QUESTION)
    first, headers, _ = proxy.requests[0]
    assert first == "POST http://far.invalid/v1/chat/completions HTTP/1.1"
    assert headers["host"] == "far.invalid" and headers["proxy-authorization"] == "Basic bWU6cGFzcw=="
