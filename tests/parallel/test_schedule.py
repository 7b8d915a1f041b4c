"""The table of a pipeline: complete, in order, never stuck, and as busy as the published schedules."""

import itertools

import pytest

from herd.errors import ConfigError
from herd.parallel.schedule import Action, bubble_share, most_held, pipeline_table

SHAPES = [
    (pipeline, interleave, micro, contiguous)
    for pipeline, interleave, micro, contiguous in itertools.product(
        (1, 2, 3, 4), (1, 2, 3), (1, 2, 5, 8), (0, 1, 2, 5, 8)
    )
]


@pytest.mark.parametrize(("pipeline", "interleave"), itertools.product((1, 2, 3, 4, 16), (1, 2, 3)))
def test_every_stage_runs_every_micro_batch_once_each_way_and_after_what_it_needs(pipeline, interleave):
    for micro, contiguous in itertools.product((1, 2, 5, 8), (0, 1, 2, 5, 8)):
        table = pipeline_table(pipeline, interleave, micro, contiguous)
        last, done = pipeline * interleave - 1, set()
        for tick in itertools.zip_longest(*table):
            for rank, (stage, kind, number) in ((r, action) for r, action in enumerate(tick) if action):
                assert stage % pipeline == rank
                if kind == "F":
                    assert stage == 0 or Action(stage - 1, "F", number) in done
                else:
                    assert Action(stage, "F", number) in done
                    assert stage == last or Action(stage + 1, "B", number) in done
            assert done.isdisjoint(filter(None, tick))
            done |= set(filter(None, tick))
        assert len(done) == 2 * pipeline * interleave * micro


def test_the_bubble_is_the_papers_share():
    for pipeline, interleave, micro in [(4, 1, 8), (4, 2, 8), (8, 4, 16)]:
        share = bubble_share(pipeline_table(pipeline, interleave, micro))
        assert share == pytest.approx((pipeline - 1) / (interleave * micro))


def test_contiguous_micro_batches_run_in_a_row_and_decide_how_much_is_held():
    table = pipeline_table(4, 2, 10, 5)  # the paper's figure: 4 processes, 8 stages, 10 micro-batches, N = 5
    forwards = [(action.stage, action.micro) for action in table[0] if action and action.kind == "F"]
    assert forwards[:10] == [(0, n) for n in range(5)] + [(4, n) for n in range(5)]
    held = [most_held(pipeline_table(4, 2, 8, n)[0]) for n in (4, 8)]
    assert held[0] < held[1] == 15  # breadth first holds (nearly) everything


def test_fewer_micro_batches_than_stages_are_allowed_and_none_is_refused():
    assert bubble_share(pipeline_table(8, 2, 3)) > 1
    with pytest.raises(ConfigError, match="at least one micro-batch"):
        pipeline_table(2, 1, 0)
