"""Many clients at once, some of which vanish or send rubbish: nobody else notices."""

from __future__ import annotations

import asyncio
import random
import resource
import time

import httpx
import pytest

from herd.serve.app import create_app
from tests.serve.conftest import Running, chat_engine, listening

CLIENTS, SECONDS = 200, 30


@pytest.mark.slow
def test_two_hundred_clients_some_rude_meet_only_the_intended_errors():
    engine = chat_engine()
    with listening(create_app(engine, name="tiny")) as url:
        server = Running(url, engine)
        counts = asyncio.run(besiege(url, SECONDS / 3))
        early = peak_kilobytes()
        for status, count in asyncio.run(besiege(url, SECONDS)).items():
            counts[status] = counts.get(status, 0) + count
        assert peak_kilobytes() < early + 30_000
        server.wait_until_idle()
    assert set(counts) <= {200, 400, 429, "left"}, counts
    assert counts[200] > CLIENTS and counts[400] and counts["left"]


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def besiege(url: str, seconds: float) -> dict[int | str, int]:
    """How often each status came back to `CLIENTS` clients that asked again and again."""
    counts: dict[int | str, int] = {}
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def visit(number: int) -> None:
            luck = random.Random(number)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                status = await ask(client, luck)
                counts[status] = counts.get(status, 0) + 1

        await asyncio.gather(*(visit(number) for number in range(CLIENTS)))
    return counts


async def ask(client: httpx.AsyncClient, luck: random.Random) -> int | str:
    body = {
        "prompt": f"number {luck.randrange(1000)}",
        "max_tokens": luck.randrange(1, 60),
        "n": luck.choice((1, 1, 3)),
    }
    kind = luck.random()
    if kind < 0.1:
        return (await client.post("/v1/completions", content=luck.randbytes(50))).status_code
    if kind < 0.3:
        async with client.stream(
            "POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 200}
        ) as response:
            if response.status_code != 200:
                return response.status_code
            await anext(response.aiter_lines())
            return "left"
    response = await client.post("/v1/completions", json=body | {"stream": kind < 0.6})
    if response.status_code == 200 and kind < 0.6:
        assert response.text.endswith("data: [DONE]\n\n")
    if response.status_code == 429:
        await asyncio.sleep(0.2)
    return response.status_code
