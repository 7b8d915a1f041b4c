"""Requests made to do harm, and a patient client beside them: how long it ever waits for an answer."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
_ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def attacks() -> list[tuple[str, str, bytes]]:
    """(name, path, body) of each."""
    return [(name, path, body if isinstance(body, bytes) else json.dumps(body).encode()) for name, path, body in _all()]


def _all() -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    for path, one in ((CHAT, _ASK), (PLAIN, {"prompt": "a", "max_tokens": 2})):
        for name, fields in _FIELDS.items():
            found.append((f"{name} of {path}", path, one | fields))
        for name, form in _FORMS.items():
            found.append((f"{name} at {path}", path, one | {"structured_outputs": form}))
    for path in (CHAT, PLAIN, "/v1/embeddings", "/tokenize", "/detokenize"):
        for name, content in _BODIES.items():
            found.append((f"{name} to {path}", path, content))
    found += [(name, CHAT, _ASK | fields) for name, fields in _OF_CHAT.items()]
    return found + list(_OTHERS)


_ARGUMENTS = '{"a":' * 3000 + "1" + "}" * 3000
_CALL = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_FIELDS: dict[str, dict] = {
    "16,000 fields": {f"field{i}": 0 for i in range(16_000)},
    "a name of a megabyte": {"x" * 1_000_000: 1},
    "biases": {"logit_bias": {str(i): 1 for i in range(300_000)}},
    "40,000 biases": {"logit_bias": {str(i): 1 for i in range(40_000)}},
    "1,024 biases": {"logit_bias": {str(i): 1 for i in range(1024)}},
    "wrong biases": {"logit_bias": {f"x{i}": 1 for i in range(1000)}},
    "long stops": {"stop": ["a" * 12_000] * 64},
    "many stops": {"stop": ["a"] * 100_000},
    "64 stops": {"stop": ["e" * 64] * 64},
    "numbers as stops": {"stop": [0] * 500_000},
    "a model of a megabyte": {"model": "x" * 1_000_000},
    "metadata": {"metadata": {f"k{i}": "v" * 10 for i in range(60_000)}},
    "less metadata": {"metadata": {f"k{i}": "v" * 60 for i in range(49_000)}},
    "lists": {"metadata": [[[]]] * 80_000},
    "a deep user": {"user": json.loads("[" * 900 + "]" * 900)},
    "128 answers": {"n": 128},
    "a seed beyond": {"seed": 10**400},
    "max_tokens beyond": {"max_tokens": 10**18},
    "a temperature beyond": {"temperature": 1e308},
}
_FORMS: dict[str, dict] = {
    "endless patterns": {"json": {"allOf": [{"type": "string", "pattern": f"a.*{i}.*b"} for i in range(20)]}},
    "2,000 properties": {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}},
    "an enum": {"json": {"enum": [f"x{i}" for i in range(9000)]}},
    "1,500 kinds": {"json": {"anyOf": [{"properties": {f"p{i}": {"type": "string"}}} for i in range(1500)]}},
    "a chain": {"json": {"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(925)}, "$ref": "#/$defs/a0"}},
    "a circle": {"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
    "long texts": {"json": {"type": "array", "items": {"type": "string", "maxLength": 100_000}, "maxItems": 10**6}},
    "choices": {"choice": [f"{i:x}" for i in range(40_000)]},
    "100,000 choices": {"choice": [f"choice {i}" for i in range(100_000)]},
    "counted groups": {"regex": "(a{1,500}b{1,500}){1,200}"},
    "an expression of 1.3 MB": {"regex": "a?" * 650_000},
    "dots": {"regex": "(.*a){20}.{300}"},
    "words": {"regex": r"\w{1,100}" * 800},
    "rules": {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(2800)) + '\nr2800: "a"'},
    "alternatives": {"grammar": "start: " + " | ".join(f'"a{i}"' for i in range(9000))},
    "a grammar of 1.3 MB": {"grammar": "start: " + " | ".join(f'"a{i}"' for i in range(120_000))},
    "repeats": {"grammar": 'start: ("a" "b"?){1,100000}'},
}
_BODIES: dict[str, bytes] = {
    "brackets": b"[" * 1_000_000,
    "closed brackets": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 200_000,
    "nulls": b"[" + b"null," * 700_000 + b"null]",
    "empty objects": b'{"prompt": [' + b"{}," * 1_000_000 + b"{}]}",
    "fewer nulls": b"[" + b"null," * 240_000 + b"null]",
    "short texts": b'{"prompt": [' + b'"ab",' * 240_000 + b'"ab"]}',
    "a long number": b'{"prompt": ' + b"9" * 3_000_000 + b"}",
    "bytes": bytes(range(256)) * 10_000,
    "escapes": b'{"prompt": "' + b"\\u1234" * 600_000 + b'"}',
    "half characters": b'{"prompt": "' + b"\\ud800" * 600_000 + b'"}',
    "one key again": b"{" + b'"prompt": "a",' * 250_000 + b'"prompt": "a"}',
}
_OF_CHAT: dict[str, dict] = {
    "messages that are none": {"messages": [0] * 500_000},
    "8,000 messages": {"messages": [{"role": "user", "content": ""}] * 8000},
    "2,000 messages": {"messages": [{"role": "user", "content": "a"}] * 2000},
    "a message of 3 MB": {"messages": [{"role": "user", "content": "a b " * 750_000}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 90_000}]},
    "many parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1980}] * 5},
    "many calls": {"messages": [{"role": "assistant", "tool_calls": [_CALL] * 2400}] * 2},
    "likely tokens of 10 answers": {
        "n": 10,
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 200,
        "ignore_eos": True,
    },
    "a stream of them": {"n": 10, "logprobs": True, "top_logprobs": 20, "max_tokens": 200, "stream": True},
    "a role of a megabyte": {"messages": [{"role": "x" * 1_000_000}]},
    "128 tools": {"tools": [_TOOL] * 128, "tool_choice": "required"},
    "10,000 tools": {"tools": [_TOOL] * 10_000},
    "deep arguments": {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": _ARGUMENTS}}],
            }
        ]
    },
}
_OTHERS: list[tuple[str, str, Any]] = [
    ("a text of 4 MB", "/tokenize", {"prompt": "a " * 1_900_000}),
    ("a text with its tokens", "/tokenize", {"prompt": "a " * 90_000, "return_token_strs": True}),
    ("a long word", "/tokenize", {"prompt": "a" * 1_000_000}),
    ("200,000 ids", "/detokenize", {"tokens": [1] * 200_000}),
    ("a million ids", "/detokenize", {"tokens": [1] * 1_000_000}),
    ("likely tokens", PLAIN, {"prompt": ["a"] * 10, "max_tokens": 200, "logprobs": 5, "ignore_eos": True}),
    ("likely tokens of a prompt", PLAIN, {"prompt": "a b " * 1000, "max_tokens": 1, "logprobs": 5, "echo": True}),
    ("ids", PLAIN, {"prompt": [1] * 1_000_000, "max_tokens": 1}),
    ("lists of ids", PLAIN, {"prompt": [[1] * 1000] * 1000, "max_tokens": 1}),
    ("2,000 prompts", PLAIN, {"prompt": ["a"] * 2000, "max_tokens": 1}),
    ("250 prompts", PLAIN, {"prompt": ["a"] * 250, "max_tokens": 1}),
    ("2,000 texts", "/v1/embeddings", {"input": ["a"] * 500}),
    ("halves", "/v1/embeddings", {"input": [0.5] * 500_000}),
]


@dataclass
class Siege:
    """What came of it."""

    statuses: collections.Counter = field(default_factory=collections.Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)  # seconds an attack was worked on
    gaps: list[tuple[float, str]] = field(default_factory=list)  # seconds the patient client waited, and beside what


async def besiege(url: str, seconds: float, at_once: int = 3) -> Siege:
    """Attack for so long, every attack at least once, while a patient client asks for a word again and again.

    The patient client is a process of its own: beside the attackers it would wait for them as well.
    """
    siege, times, until = Siege(), [], time.monotonic() + seconds
    every = attacks()
    numbers = iter(range(10**9))

    async def attack(client: httpx.AsyncClient) -> None:
        while (number := next(numbers)) < len(every) or time.monotonic() < until:
            name, path, body = every[number % len(every)]
            began = time.monotonic()
            try:
                headers = {"Content-Type": "application/json"}
                answer = await client.post(path, content=body, headers=headers)
                siege.statuses[answer.status_code] += 1
            except httpx.TimeoutException:
                siege.statuses["left"] += 1
            times.append((began, time.monotonic(), name))

    with patient(url) as waits:
        async with httpx.AsyncClient(base_url=url, timeout=60) as hostile:
            await asyncio.gather(*(attack(hostile) for _ in range(at_once)))
    siege.slowest = [(end - began, name) for began, end, name in times]
    for begun, ended in waits:
        beside = {name for began, end, name in times if began < ended and end > begun}
        siege.gaps.append((ended - begun, ", ".join(sorted(beside))))
    return siege


@contextlib.contextmanager
def patient(url: str) -> Iterator[list[tuple[float, float]]]:
    """A client that asks for a word until the end: when each of its requests began and ended, once it is over."""
    waits: list[tuple[float, float]] = []
    words = [sys.executable, "-c", _PATIENT, url]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield waits
        finally:
            process.stdin.close()
            waits += json.loads(process.stdout.read() or "[]")
    assert process.returncode == 0


_PATIENT = """
import json, select, sys, time
import httpx
waits = []
with httpx.Client(base_url=sys.argv[1], timeout=60) as client:
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        began = time.monotonic()
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        waits.append((began, time.monotonic()))
        if len(waits) == 1:
            print("ready", flush=True)
print(json.dumps(waits[1:]))
"""
