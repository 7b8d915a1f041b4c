"""Decode steps of fixed shape: the tokens of plain steps; recording is rehearsed on a CPU, and real on a GPU."""

import random

import numpy as np
import pytest
import torch

from herd.errors import CapacityError
from herd.infer.cache import block_bytes
from herd.infer.engine import Engine
from herd.infer.graphs import DecodeGraphs, DecodeRows, Rehearsal
from herd.kernels import device as device_kernels
from herd.types import SamplingParams
from tests.infer.models import SHAPES, small_tokenizer, tiny_model

PROMPTS = ["The quick", "What does this function do? " * 4, "日本語", "It joins paths. " * 9, "q", "The quick brown"]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
ONE_SEQUENCE = torch.zeros(8, 4)


def engine_of(model=None, **options) -> Engine:
    return Engine.of(model or tiny_model(), small_tokenizer(), **{"max_sequences": 8, **options})


def at_once(engine: Engine) -> Engine:
    """Record whatever was missed once, whatever the time."""
    engine.loop.runner.graphs._clock = iter(range(10**9)).__next__
    engine.loop.runner.graphs._began = -(10**9)
    return engine


def tokens_of(engine: Engine, prompts=PROMPTS, params=GREEDY) -> list[list[int]]:
    return [answer.tokens for answer in engine.generate(prompts, params)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_replayed_steps_give_the_tokens_of_plain_ones(shape, cache_dtype):
    plain = engine_of(tiny_model(**shape), cache_dtype=cache_dtype)
    replaying = at_once(engine_of(tiny_model(**shape), cache_dtype=cache_dtype, graphs=True))
    for _ in range(2):
        assert tokens_of(replaying) == tokens_of(plain)
    graphs = replaying.loop.runner.graphs
    assert graphs.num_replayed > graphs.num_missed and {rows for rows, _ in graphs.shapes} >= {8}


def test_arrivals_cancellations_shared_prefixes_and_samples_change_nothing():
    runs = []
    for graphs in (None, True):
        engine = engine_of(graphs=graphs, max_prompt_tokens=24)
        if graphs:
            at_once(engine)
        chance, finished = random.Random(0), []
        for turn in range(60):
            if turn % 3 == 0:
                params = SamplingParams(
                    temperature=turn % 2 * 0.8, seed=turn, max_tokens=10 + turn % 17, n=1 + turn % 2, logprobs=turn % 3
                )
                request = engine.request("What does this function do? " * (turn % 4) + PROMPTS[turn % 6], params)
                engine.submit(request)
                finished.append(request)
            if turn % 10 == 9:
                engine.cancel(chance.choice(finished))
            engine.step()
        while engine.has_work:
            engine.step()
        assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks
        runs.append([[(a.finish_reason, a.tokens) for a in request.answers] for request in finished])
    assert engine.loop.runner.graphs.num_replayed > 20
    assert runs[0] == runs[1]


def test_guesses_are_verified_by_graphs_too():
    plain = engine_of()
    guessing = at_once(engine_of(graphs=True, speculate="lookup"))
    guessing.loop.speculation.always = True
    assert tokens_of(guessing) == tokens_of(plain)
    assert guessing.loop.speculation.num_accepted > 0 and guessing.loop.runner.graphs.num_replayed > 0


def test_an_answer_that_depends_on_nobody_stays_so():
    engine = at_once(engine_of(graphs=True, deterministic=True))
    together = tokens_of(engine)
    assert [tokens_of(engine, [prompt])[0] for prompt in PROMPTS] == together
    assert {rows for rows, _ in engine.loop.runner.graphs.shapes} == {1}


def test_what_is_left_over_writes_to_the_spare_block_alone():
    engine = at_once(engine_of(graphs=True, cache_bytes=2**18))
    tokens_of(engine, PROMPTS[:3])
    cache = engine.loop.runner.cache
    spare = cache.tensors[0][:, :, cache.num_blocks]
    assert engine.loop.runner.graphs.shapes == [(4, 16)]
    assert spare[:, :, 0].any() and not spare[:, :, 1:].any()
    assert cache.nbytes <= 2**18


def test_a_cache_with_no_room_for_the_spare_block_is_refused():
    one = block_bytes(tiny_model().config, 16, torch.float32)
    assert engine_of(cache_bytes=one).loop.allocator.num_blocks == 1
    with pytest.raises(CapacityError, match="kept free for CUDA graphs"):
        engine_of(cache_bytes=one, graphs=True)


class Clock:
    """A time that only moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowRecorder(Rehearsal):
    """Takes ten seconds for each recording."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def record(self, work):
        self.clock.now += 10
        return super().record(work)


def graphs_of(recorder, clock, **options) -> DecodeGraphs:
    return DecodeGraphs(
        lambda rows: rows.tokens[:, None] + rows.blocks[:, :1].float().expand(-1, 4),
        recorder,
        **{"most_rows": 8, "most_blocks": 40, "spare_block": 99, "block_size": 16, "hidden": ONE_SEQUENCE.clone(),
           "clock": clock, **options},
    )  # fmt: skip


def rows_of(num_rows: int, num_blocks: int = 1) -> DecodeRows:
    column = np.arange(num_rows, dtype=np.int64)
    return DecodeRows(column, column, column, column + 1, np.ones((num_rows, num_blocks), dtype=np.int64))


def test_shapes_are_powers_of_two_up_to_the_engines_bounds():
    graphs = graphs_of(Rehearsal(), Clock(), most_rows=6)
    assert [graphs.shape_for(rows, 1) for rows in (1, 2, 3, 5, 6, 7)] == [
        (1, 16),
        (2, 16),
        (4, 16),
        (6, 16),
        (6, 16),
        None,
    ]
    assert [graphs.shape_for(1, blocks) for blocks in (16, 17, 33, 40, 41)] == [
        (1, 16),
        (1, 32),
        (1, 40),
        (1, 40),
        None,
    ]


def test_a_shape_is_recorded_once_it_came_up_often_and_recording_takes_a_share_of_the_time():
    clock = Clock()
    graphs = graphs_of(SlowRecorder(clock), clock)

    def steps(num_rows: int, count: int) -> None:
        for _ in range(count):
            graphs.run(rows_of(num_rows))
            graphs.record_most_missed()

    steps(1, 2)
    assert graphs.shapes == []
    steps(1, 1)
    assert graphs.shapes == [(1, 16)]
    steps(2, 9)
    assert graphs.shapes == [(1, 16)]  # ten seconds went into recording, and none into work
    clock.now += 60
    steps(2, 1)
    assert graphs.shapes == [(1, 16), (2, 16)]


def test_a_replay_reads_this_steps_numbers_and_none_of_the_last_steps():
    graphs = graphs_of(Rehearsal(), Clock())
    for _ in range(3):
        assert graphs.run(rows_of(4)) is None
    graphs.record_most_missed()
    assert graphs.run(rows_of(4))[:, 0].tolist() == [1, 2, 3, 4]
    assert graphs.run(rows_of(3))[:, 0].tolist() == [1, 2, 3]
    assert graphs._hidden[3, 0] == 99  # the row that was left over saw the spare block


def test_a_recorder_that_fails_leaves_plain_steps():
    class Broken:
        def record(self, work):
            raise torch.OutOfMemoryError("no room\nfor this")

    graphs = graphs_of(Broken(), Clock())
    for _ in range(4):
        assert graphs.run(rows_of(1)) is None
        graphs.record_most_missed()
    assert graphs.fault == "no room" and graphs.shapes == []


def test_a_recorder_that_is_not_ready_is_asked_again():
    class Late(Rehearsal):
        asked = 0

        def record(self, work):
            self.asked += 1
            return super().record(work) if self.asked == 2 else None

    graphs = graphs_of(Late(), Clock())
    for _ in range(6):
        graphs.run(rows_of(1))
        graphs.record_most_missed()
    assert graphs.shapes == [(1, 16)]


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_on_a_gpu_real_graphs_give_the_tokens_of_plain_steps(cache_dtype):
    model = tiny_model(head_dim=32).to("cuda")
    plain = engine_of(model, cache_dtype=cache_dtype, graphs=False)
    replaying = engine_of(model, cache_dtype=cache_dtype)
    with device_kernels.waiting():
        expected = tokens_of(plain)
        at_once(replaying)
        for _ in range(3):
            assert tokens_of(replaying) == expected
    assert replaying.loop.runner.graphs.num_replayed > 0 and not replaying.loop.runner.graphs.fault
