"""Many clients at once, some of which vanish or send rubbish: nobody else notices, and no memory is lost."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from herd.formats.checkpoint import save
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.load import CLIENTS, INTENDED, abandon, besiege, serving, settle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = small_tokenizer()
    model = tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=4096)
    save(model, tmp_path / "tiny", tokenizer)
    return tmp_path / "tiny"


@pytest.mark.slow
def test_for_a_minute_two_hundred_clients_meet_only_the_intended(folder):
    stand(folder, warm_seconds=15, seconds=45)


@pytest.mark.soak
def test_for_ten_minutes_too(folder):
    stand(folder, warm_seconds=60, seconds=540)


@pytest.mark.slow
def test_two_thousand_requests_that_are_all_left_keep_no_memory(folder):
    endure(folder, first=1000, then=2000)


@pytest.mark.soak
def test_ten_thousand_requests_that_are_all_left_keep_no_memory(folder):
    endure(folder, first=1000, then=10_000)


def endure(folder: Path, *, first: int, then: int) -> None:
    with serving(folder, "engine.max_sequences=16", "engine.cache_gb=0.02") as server:
        asyncio.run(abandon(server.url, first))
        asyncio.run(settle(server.url))
        early = server.resident_bytes()
        counts = asyncio.run(abandon(server.url, then))
        assert asyncio.run(settle(server.url)) == {"status": "ok", "running": 0, "waiting": 0}
        assert server.resident_bytes() < early + 25e6
    assert set(counts) <= {200, 429, "left"} and counts[200] and counts["left"], counts


def stand(folder: Path, *, warm_seconds: float, seconds: float) -> None:
    with serving(folder, "engine.max_sequences=16", "limits.max_waiting=150") as server:
        counts = asyncio.run(besiege(server.url, warm_seconds))
        asyncio.run(settle(server.url))
        early = server.resident_bytes()
        counts += asyncio.run(besiege(server.url, seconds))
        health = asyncio.run(settle(server.url))
        assert health == {"status": "ok", "running": 0, "waiting": 0}
        assert server.resident_bytes() < early + 30e6
        metrics = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'herd_cache_free_share{model="tiny"} 1\.0', metrics)
    assert set(counts) <= INTENDED, counts
    assert counts[200] > CLIENTS and counts[400] and counts["left"], counts
