"""The engine's memory: the weights, the stated cache, and nothing that grows with the requests."""

from __future__ import annotations

import gc
import os
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest

from herd.errors import RequestError
from herd.infer.engine import Engine
from herd.infer.guide import Guide
from herd.infer.request import Answer, Request
from herd.types import SamplingParams
from tests.infer.models import TEXT, small_tokenizer, tiny_model


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def ask(engine: Engine, first: int, count: int) -> None:
    """Requests of many kinds, none of them twice the same."""
    prompts = [f"{number} {TEXT[number % 90 : number % 90 + 60]}" for number in range(first, first + count)]
    kinds = [
        SamplingParams(max_tokens=6, temperature=1.0),
        SamplingParams(max_tokens=4, temperature=0, logprobs=2, prompt_logprobs=0),
        SamplingParams(max_tokens=6, n=2, stop=("e",)),
        SamplingParams(max_tokens=6, presence_penalty=1.0),
    ]
    for start in range(0, count, 50):
        engine.generate(prompts[start : start + 50], kinds[start // 50 % len(kinds)])


@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(600, {}, marks=pytest.mark.slow),
        pytest.param(600, {"speculate": "lookup", "cache_dtype": "int8"}, marks=pytest.mark.slow),
        pytest.param(10_000, {}, marks=pytest.mark.soak),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
def test_memory_stays_flat_over_many_requests(count, options):
    engine = Engine.of(tiny_model(), small_tokenizer(), cache_bytes=2**21, max_sequences=32, **options)
    ask(engine, 0, 300)  # the cache's pages are touched, the allocator has its arenas
    gc.collect()
    before = resident_bytes()
    ask(engine, 300, count)
    gc.collect()
    assert resident_bytes() - before < 8_000_000
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


def num_alive() -> int:
    """Requests, answers and grammars in memory."""
    return sum(type(thing) in (Request, Answer, Guide) for thing in gc.get_objects())


def mix(engine: Engine, count: int) -> None:
    """Requests that finish, are cancelled in the queue or in their middle, or are refused."""
    digits = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    kinds = [{}, {"n": 3}, {"json_schema": digits}, {"stop": ("e",), "logprobs": 3}, {"n": 1, "best_of": 2}]
    going: deque[Request] = deque()
    for number in range(count):
        params = SamplingParams(max_tokens=1 + number % 9, **kinds[number % len(kinds)])
        with suppress(RequestError):
            going.append(engine.request(f"{number} {TEXT * (number % 7)}"[: 1 + number % 200], params, lambda _: None))
            engine.submit(going[-1])
        with suppress(RequestError):
            engine.request(f"{number} {TEXT * 20}", params, lambda _: None)  # too long
        if number % 3 == 0:
            engine.cancel(going.pop())
        if number % 4 == 0:
            engine.step()
        if len(going) > 60:
            engine.cancel(going.popleft())
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("options", [{}, {"speculate": "lookup", "cache_dtype": "int8"}, {"deterministic": True}])
def test_a_request_is_gone_with_its_last_holder_without_waiting_for_the_collector(options):
    engine = Engine.of(tiny_model(), small_tokenizer(), cache_bytes=2**21, max_sequences=8, **options)
    gc.collect()
    before = num_alive()
    gc.disable()
    try:
        mix(engine, 200)
        assert num_alive() == before
    finally:
        gc.enable()


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
def test_ten_thousand_requests_of_every_fate_leave_nothing():
    engine = Engine.of(tiny_model(), small_tokenizer(), cache_bytes=2**21, max_sequences=32)
    mix(engine, 1000)
    alive, before = num_alive(), resident_bytes()
    mix(engine, 10_000)
    assert num_alive() == alive == 0
    assert resident_bytes() - before < 8_000_000
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


def test_an_answer_of_four_times_the_trained_length_keeps_to_the_stated_cache_and_reports_its_repetition():
    engine = Engine.of(tiny_model(), small_tokenizer(), cache_bytes=2**20, max_context=1024)
    before = engine.cache_bytes
    answer = engine.generate("The quick", SamplingParams(temperature=0, max_tokens=5000))
    assert answer.finish_reason == "length" and engine.cache_bytes == before <= 2**20
    assert len(answer.tokens) + answer.prompt_tokens == 1024
    assert 0.3 < answer.repetition < 1  # greedy decoding of a random model goes in circles
