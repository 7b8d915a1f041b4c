"""Clients that go away take their requests with them."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx

from herd.types import SamplingParams

LONG = {"prompt": "The quick", "max_tokens": 1900, "temperature": 0, "n": 8}  # seconds of work: no stop token comes


def test_a_stream_left_in_the_middle_frees_its_blocks(server, http):
    with http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.engine.has_work
    server.wait_until_idle()


def test_a_client_that_hangs_up_while_it_waits_for_a_whole_answer_is_noticed(server):
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall((head + "Content-Type: application/json\r\n\r\n").encode() + body)
        until = time.monotonic() + 5
        while not server.engine.num_running and time.monotonic() < until:
            time.sleep(0.01)
        assert server.engine.num_running
    server.wait_until_idle()


def test_of_many_clients_the_ones_that_vanish_disturb_nobody(server):
    async def ask(client: httpx.AsyncClient, number: int) -> str | None:
        body = {"prompt": f"number {number}", "seed": number, "stream": True}
        if number % 3:
            body |= {"max_tokens": 10}
            text = (await client.post("/v1/completions", json=body)).text
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            return "".join(event["choices"][0]["text"] for event in events)
        async with client.stream("POST", "/v1/completions", json=body | {"max_tokens": 1000}) as response:
            await anext(response.aiter_lines())
            return None

    async def ask_all() -> list[str | None]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(30)))

    answers = asyncio.run(ask_all())
    server.wait_until_idle()
    for number, text in enumerate(answers):
        if number % 3:
            params = SamplingParams(seed=number, max_tokens=10)
            assert text == server.engine.generate(f"number {number}", params).text


def test_half_a_request_and_noise_do_not_stop_the_server(server, http):
    port = int(server.url.rpartition(":")[2])
    for noise in (b"\x00\xff\x16\x03 rubbish\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(noise)
    assert http.get("/health").json()["status"] == "ok"
    server.wait_until_idle()
