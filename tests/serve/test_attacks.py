"""Hostile requests by the hundred: a patient client is served all the while, and the memory comes back."""

from __future__ import annotations

import asyncio
import time

import pytest

from herd.formats.checkpoint import save
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.attacks import attacks, besiege, patient
from tests.serve.load import serving, settle


def test_the_attacks_are_many_and_fit_a_body():
    every = attacks()
    assert len(every) >= 100 and len({name for name, _, _ in every}) == len(every)
    assert all(len(body) < 6_000_000 for _, _, body in every)


@pytest.mark.soak
def test_a_patient_client_hardly_notices(tmp_path):
    tokenizer = small_tokenizer()
    save(tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=4096), tmp_path / "tiny", tokenizer)
    with serving(tmp_path / "tiny", "engine.cache_gb=0.02") as server:
        asyncio.run(besiege(server.url, 0))
        asyncio.run(settle(server.url))
        early = server.resident_bytes()
        with patient(server.url) as before:
            time.sleep(5)
        siege = asyncio.run(besiege(server.url, 60))
        assert asyncio.run(settle(server.url)) == {"status": "ok", "running": 0, "waiting": 0}
        late = server.resident_bytes()
        with patient(server.url) as after:
            time.sleep(5)
    usual = max(end - begun for begun, end in before + after)  # a machine that is busy otherwise makes this longer
    print(f"\n{len(attacks())} attacks, {siege.statuses}")
    print(
        f"memory {early / 1e6:.0f} -> {late / 1e6:.0f} MB; quiet {usual:.3f} s; worst gaps",
        *sorted(siege.gaps)[-12:],
        sep="\n  ",
    )
    print("slowest attacks", *sorted(siege.slowest)[-8:], sep="\n  ")
    assert set(siege.statuses) <= {200, 400, 404, 413, 429, "left"}, siege.statuses
    assert late < 1.1 * early
    assert max(siege.gaps)[0] < 0.5 + 2 * usual
