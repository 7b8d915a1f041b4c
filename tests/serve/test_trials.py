"""Grammars that never end, or take much memory, hold up nobody else and leave nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from herd.serve.app import create_app
from tests.serve.conftest import Running, chat_engine, listening

ENDLESS = {"json": {"allOf": [{"type": "string", "pattern": f"a.*{i}.*b"} for i in range(20)]}}
ASK = {"prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    engine = chat_engine(max_position_embeddings=2048)
    with listening(create_app(engine, name="tiny")) as url:
        yield Running(url, engine)


def ask(url: str, form: dict | None = None, seconds: float = 180) -> httpx.Response:
    body = ASK | ({"structured_outputs": form} if form else {})
    return httpx.post(url + "/v1/completions", json=body, timeout=seconds)


def test_a_schema_that_compiles_for_ever_is_refused_and_others_are_served(running):
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(running.url, ENDLESS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert ask(running.url, seconds=30).status_code == 200
        time.sleep(0.1)
    assert {answer.status_code for answer in answers} == {400}
    messages = {answer.json()["error"]["message"] for answer in answers}
    assert all("cannot be followed" in message for message in messages), messages
    assert answers[0].json()["error"]["param"] == "structured_outputs"
    assert ask(running.url, {"choice": ["a", "b"]}).json()["choices"][0]["text"] in ("a", "b")


def test_a_client_that_leaves_takes_its_trial_along(running):
    for _ in range(40):
        with pytest.raises(httpx.TimeoutException):
            ask(running.url, ENDLESS, seconds=0.1)
    # each would take two seconds of a processor, two at a time: forty seconds on any machine
    assert ask(running.url, {"regex": "[ab]"}, seconds=25).status_code == 200
    running.wait_until_idle(30)


def test_grammars_that_need_much_memory_are_refused_or_give_it_back(running):
    large = {"choice": [f"{i:x}" for i in range(40_000)]}
    assert {ask(running.url, large).status_code for _ in range(4)} <= {200, 400}
    assert ask(running.url, {"choice": ["x" * 30] * 100_000}).status_code == 400
    assert ask(running.url, {"json": {"type": "array", "items": {"type": "string"}}}).status_code == 200
