"""Requests made to do harm: each is refused in one sentence, and is little work."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from herd.serve.app import create_app
from herd.serve.limits import BodyLimit, Guesses, Limits
from herd.serve.replies import written
from tests.serve.conftest import Running, chat_engine, listening

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
KEYS = {"alice": "key-a", "bob": "key-b"}


@pytest.fixture(scope="module")
def open_server() -> Iterator[Running]:
    engine = chat_engine(max_position_embeddings=2048)
    with listening(create_app(engine, name="tiny")) as url:
        yield Running(url, engine)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", CHAT | {f"field{i}": 0 for i in range(16_000)}, "16,003 fields"),
        ("/v1/chat/completions", CHAT | {"messages": [0] * 8000}, "`messages.0` must be a JSON object"),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": ""}] * 8000}, "at most 2048"),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", **{f"f{i}": 0 for i in range(9999)}}]},
            "fields",
        ),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": [0] * 9999}]}, "messages.0.content"),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "x" * 1_000_000}]}, "is none of"),
        ("/v1/chat/completions", CHAT | {"x" * 1_000_000: 1}, "Unknown field"),
        ("/v1/chat/completions", CHAT | {"model": "x" * 1_000_000}, "no model"),
        ("/v1/chat/completions", CHAT | {"logit_bias": {str(i): 1 for i in range(40_000)}}, "40,000 entries"),
        ("/v1/chat/completions", CHAT | {"logit_bias": {f"x{i}": 1 for i in range(1000)}}, "first 10 faults"),
        ("/v1/chat/completions", CHAT | {"stop": ["a" * 12_000] * 64}, "768,000 characters"),
        ("/v1/chat/completions", CHAT | {"stop": [0] * 200_000}, "`stop"),
        ("/v1/completions", {"prompt": [0.5] * 240_000}, "`prompt"),
        ("/v1/completions", {"prompt": [[0.5] * 240_000]}, "`prompt"),
        ("/v1/embeddings", {"input": [{}] * 9_000}, "`input"),
        ("/tokenize", {"prompt": "a " * 1_300_000, "return_token_strs": True}, "at most 1000000"),
        ("/tokenize", {"prompt": "\u1234" * 300_000}, "are listed"),
        ("/detokenize", {"tokens": [1] * 240_000}, "at most 200000"),
        ("/detokenize", {"tokens": ["a"] * 240_000}, "`tokens"),
    ],
    ids=range(19),
)
def test_what_would_be_much_work_is_refused_in_few_words(open_server, path, body, words):
    response = httpx.post(open_server.url + path, json=body, timeout=30)
    assert response.status_code in (400, 404), response.text[:300]
    message = response.json()["error"]["message"]
    assert words in message and len(response.content) < 10_000
    assert message.count(";") <= 21


def test_many_vectors_are_written_one_by_one(open_server):
    for form in ("float", "base64"):
        body = {"input": ["a"] * 50, "encoding_format": form}
        found = httpx.post(open_server.url + "/v1/embeddings", json=body, timeout=30).json()
        assert [item["index"] for item in found["data"]] == list(range(50)) and found["usage"]["prompt_tokens"] > 0


def test_a_key_is_asked_for_before_the_body_is_read():
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n"
    )
    with listening(create_app(chat_engine(), name="tiny", keys=KEYS)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(head + b"{")  # and never the rest
            assert b" 401 " in connection.recv(1000).split(b"\r\n")[0]
        for path in ("/v1/unknown", "/tokenize", "/v1/models/x", "/else"):
            assert httpx.post(url + path, content=b"{").status_code == 401
        assert httpx.get(url + "/health").status_code == 200


def test_wrong_keys_are_answered_late_and_addresses_are_not_kept_for_ever():
    now = [0.0]
    guesses = Guesses(2, lambda: now[0])
    assert [guesses.wait_seconds("a") > 0 for _ in range(4)] == [False, False, True, True]
    assert guesses.wait_seconds("a") <= 5 and guesses.wait_seconds("b") == 0
    for number in range(20_000):
        guesses.wait_seconds(f"other {number}")
    assert guesses.wait_seconds("a") == 0  # forgotten


@pytest.mark.parametrize("shared", [False, True])
def test_what_one_key_asked_makes_another_no_faster_unless_that_is_set(shared):
    engine = chat_engine(max_position_embeddings=2048)
    body = CHAT | {"messages": [{"role": "user", "content": "a long secret " * 30}]}
    matched: list[int] = []
    match = engine.loop.allocator.match
    engine.loop.allocator.match = lambda *words: matched.append(len((found := match(*words))[0])) or found
    with listening(create_app(engine, name="tiny", keys=KEYS, limits=Limits(share_prefixes=shared))) as url:
        for key, hits in (("key-a", False), ("key-b", shared), ("key-a", True), ("key-b", True)):
            matched.clear()
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30).status_code == 200
            assert (max(matched) > 0) is hits, json.dumps([key, matched])


def test_a_body_without_a_type_is_no_json_whatever_fastapi_makes_of_it():
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope, receive, send):
        seen.append([value for name, value in scope["headers"] if name == b"content-type"])

    for headers in ([], [(b"content-type", b"")], [(b"content-type", b"application/json")]):
        scope = {"type": "http", "headers": [(b"content-length", b"2"), *headers]}
        asyncio.run(BodyLimit(app, Limits())(scope, None, None))
    assert seen == [[b"application/octet-stream"]] * 2 + [[b"application/json"]]


def test_a_body_without_a_type_is_refused(open_server):
    for headers in ({}, {"Content-Type": ""}, {"Content-Type": "text/plain"}):
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/embeddings"):
            response = httpx.post(open_server.url + path, content=json.dumps(CHAT).encode(), headers=headers)
            assert response.status_code == 400 and "Content-Type" in response.text


def test_a_message_of_very_many_parts_is_refused(open_server):
    body = CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 9_000}]}
    response = httpx.post(open_server.url + "/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 400 and "messages.0.content" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "many",
    [
        b'{"prompt": [' + b"{}," * 500_000 + b"{}]}",
        b'{"prompt": [' + b"1," * 300_000 + b"1]}",
        b'{"prompt": [' + b"{}," * 40_000 + b"{}]}",
        b"{" + b'"prompt": "a",' * 60_000 + b'"prompt": "a"}',
        b'{"a": "\\\\", "prompt": [' + b"{}," * 40_000 + b"{}]}",  # a text that ends with a backslash
        b'{"a": "\\\\\\"", "prompt": [' + b"{}," * 40_000 + b"{}]}",
    ],
    ids=range(6),
)
def test_a_body_of_very_many_values_is_refused(open_server, many):
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/embeddings", "/detokenize"):
        response = httpx.post(open_server.url + path, content=many, headers=headers, timeout=30)
        assert response.status_code == 400 and "values" in response.json()["error"]["message"]


@pytest.mark.parametrize("text", ['a, [b]: {"c"} \\', '"{{,,::', '{"a": "\\\\"}, ', "한국어 {,:} "])
def test_long_texts_that_look_like_many_values_are_taken(open_server, text):
    for ascii_only in (True, False):
        content = json.dumps({"prompt": text * (400_000 // len(text))}, ensure_ascii=ascii_only).encode()
        headers = {"Content-Type": "application/json"}
        response = httpx.post(open_server.url + "/tokenize", content=content, headers=headers, timeout=30)
        assert response.status_code in (200, 400) and "values" not in response.text[:100]
        assert "no text" not in response.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'"prompt": "\\ud800"', "half of a character"),
        (b'"prompt": "a", "user": {"\\uDC00": 1}', "half of a character"),
        (b'"prompt": "\xed\xa0\x80"', "half of a character"),
        (b'"prompt": "a", "user": ' + b"[" * 50_000 + b"]" * 50_000, ""),
        (b'"prompt": "\\ud83d\\ude00 \xed\x95\x9c", "n": 0', "`n`"),
    ],
    ids=range(5),
)
def test_half_a_character_is_found_in_a_large_body_too(open_server, body, words):
    content = b'{"metadata": "' + b"a" * 150_000 + b'", "max_tokens": 1, ' + body + b"}"
    headers = {"Content-Type": "application/json"}
    response = httpx.post(open_server.url + "/v1/completions", content=content, headers=headers, timeout=30)
    assert response.status_code == 400 and words in response.json()["error"]["message"], response.text


def test_what_is_written_in_parts_is_json(open_server):
    deep = [
        [[[[[[1]]]], {}]],
        {},
        [],
        {"a": {"b": {"c": {"d": {"e": {"f": None}}}}}},
        {'"é\n': [1.5, True, "x"], "b": 0},
    ]
    for value in deep:
        assert "".join(written(value)) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    body = CHAT | {"logprobs": True, "top_logprobs": 3, "max_tokens": 50, "ignore_eos": True, "seed": 1}
    few, many = (
        httpx.post(open_server.url + "/v1/chat/completions", json=body | {"n": n}, timeout=60).json() for n in (2, 8)
    )
    assert len(many["choices"][7]["logprobs"]["content"]) == 50
    assert [choice["message"]["content"] for choice in many["choices"][:2]] == [
        choice["message"]["content"] for choice in few["choices"]
    ]
    entry = many["choices"][7]["logprobs"]["content"][0]
    assert set(entry) == set(few["choices"][0]["logprobs"]["content"][0]) and len(entry["top_logprobs"]) == 3
    assert set(many) == set(few) and many["usage"]["completion_tokens"] == 400
