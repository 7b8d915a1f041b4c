import pytest

from herd.train.schedule import BatchSettings, ScheduleSettings, learning_rate, phases, steps_for


def rates(num_steps=100, **options):
    schedule = ScheduleSettings(**options)
    return [learning_rate(schedule, 2.0, step, num_steps) for step in range(num_steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    assert rates(warmup_steps=4)[:4] == [0.5, 1.0, 1.5, 2.0]


def test_cosine_ends_at_its_final_share_and_is_halfway_in_the_middle():
    found = rates(shape="cosine", final_share=0.1)
    assert found[-1] == pytest.approx(0.2)
    assert found[0] == 2.0
    assert (found[49] + found[50]) / 2 == pytest.approx(1.1)
    assert found == sorted(found, reverse=True)


def test_linear_goes_to_exactly_zero():
    found = rates(shape="linear", final_share=0.0)
    assert found[-1] == 0.0
    assert found[0] - found[1] == pytest.approx(found[50] - found[51])


def test_constant_stays():
    assert set(rates(shape="constant")) == {2.0}


def test_wsd_stays_at_the_peak_and_falls_over_its_last_share():
    found = rates(shape="wsd", warmup_steps=10, decay_share=0.25, final_share=0.0)
    assert found[9:75] == [2.0] * 66 and found[-1] == 0.0
    assert found[74] - found[75] == pytest.approx(found[98] - found[99]) and found[75] < 2.0
    assert rates(shape="wsd", decay_share=1.0, final_share=0.1)[1] < 2.0  # it is linear then
    with pytest.raises(ValueError, match="decay_share"):
        ScheduleSettings(decay_share=0)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "wsd"])
def test_one_step_is_learned_at_the_peak_and_two_end_at_the_final_share(shape):
    assert rates(num_steps=1, shape=shape) == [2.0]
    assert rates(num_steps=2, shape=shape, final_share=0.1)[0] == 2.0
    if shape != "constant":
        assert rates(num_steps=2, shape=shape, final_share=0.1)[1] == pytest.approx(0.2)
        assert rates(num_steps=3, shape=shape, final_share=0.1, warmup_steps=2) == pytest.approx([1.0, 2.0, 0.2])


def test_a_warm_up_longer_than_the_run_is_cut():
    assert rates(num_steps=2, warmup_steps=10) == [1.0, 2.0]


def test_the_batch_doubles_at_the_given_shares_of_the_run():
    batch = BatchSettings(tokens=8192, row_tokens=256, double_at=[0.25, 0.5])
    found = [(phase.step, phase.batch_tokens) for phase in phases(batch, 100, {"a": 1.0})]
    assert found == [(0, 2048), (25, 4096), (50, 8192)]


def test_steps_for_a_number_of_tokens_consider_the_ramp():
    batch = BatchSettings(tokens=8192, row_tokens=256, double_at=[0.5])
    assert steps_for(batch, 100 * 6144) == 100


@pytest.mark.parametrize("wrong", [{"double_at": [0.5, 0.2]}, {"double_at": [1.0]}, {"row_tokens": 0}])
def test_an_impossible_ramp_is_refused(wrong):
    with pytest.raises(ValueError, match=r"double_at|positive"):
        BatchSettings(**wrong)


def test_the_mixture_changes_at_shares_of_the_run_beside_the_batch_ramp():
    batch = BatchSettings(tokens=4096, row_tokens=256, double_at=[0.5])
    found = phases(batch, 100, {"a": 1.0}, {0.8: {"b": 1.0}, 0.25: {"a": 1.0, "b": 1.0}})
    assert [(phase.step, phase.batch_tokens, set(phase.mixture)) for phase in found] == [
        (0, 2048, {"a"}),
        (25, 2048, {"a", "b"}),
        (50, 4096, {"a", "b"}),
        (80, 4096, {"b"}),
    ]
