"""Who is served when: long prompts take turns with short ones, and everybody's decoding goes on."""

from __future__ import annotations

from herd.infer.engine import Engine
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model

PARAMS = SamplingParams(temperature=0, max_tokens=6)


def engine_with_small_steps() -> Engine:
    return Engine.of(tiny_model(max_position_embeddings=2048), small_tokenizer(), max_prompt_tokens=16)


def test_a_short_prompt_is_not_held_up_by_a_long_one():
    engine = engine_with_small_steps()
    long = engine.request([5] * 800, PARAMS)
    engine.submit(long)
    engine.step()
    short = engine.request([7] * 10, PARAMS)
    engine.submit(short)
    for _ in range(12):
        engine.step()
    assert short.finished and not long.leader.tokens


def test_a_long_prompt_is_not_starved_by_short_ones():
    engine = engine_with_small_steps()
    long = engine.request([5] * 160, PARAMS)
    engine.submit(long)
    num_steps = 0
    while not long.finished:
        engine.submit(engine.request([7 + num_steps % 40] * 12, PARAMS))
        engine.step()
        num_steps += 1
        assert num_steps < 120


def test_prompts_that_begin_alike_are_computed_once_even_when_they_arrive_together():
    engine = engine_with_small_steps()
    begin = [3] * 160
    requests = [engine.request([*begin, 10 + n], PARAMS) for n in range(4)]
    for request in requests:
        engine.submit(request)
    while not all(request.leader.tokens for request in requests):
        engine.step()
    assert len({tuple(request.leader.blocks[:3]) for request in requests}) < 4
    while engine.has_work:
        engine.step()
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks
