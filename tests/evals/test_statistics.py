"""Intervals that cover what they say, and paired differences."""

import numpy as np
import pytest

from herd.evals import statistics

N = 50


def coverage(draw, truth, interval, trials=2000):
    generator = np.random.default_rng(1)
    found = [interval(draw(generator)) for _ in range(trials)]
    return np.mean([one.low <= truth <= one.high for one in found])


def quick(values):
    return statistics.bootstrap(values, resamples=500)


@pytest.mark.parametrize("share", [0.25, 0.37, 0.62, 0.8])
def test_wilsons_interval_covers_a_share_of_fifty_95_times_in_100(share):
    covered = coverage(lambda g: (g.random(N) < share).astype(float), share, statistics.summary, 4000)
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_the_bootstrap_covers_the_mean_of_fifty_skewed_figures_95_times_in_100(zeros):
    covered = coverage(lambda g: g.beta(0.5, 1.0, N) * (g.random(N) >= zeros), (1 - zeros) / 3, quick)
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_over_ten_groups_of_five_cover_95_times_in_100(binary):
    groups = [str(place // 5) for place in range(N)]

    def draw(generator):
        of_group = np.repeat(generator.beta(2, 2, 10), 5)
        return (generator.random(N) < of_group).astype(float) if binary else of_group + generator.normal(0, 0.1, N)

    assert 0.93 <= coverage(draw, 0.5, lambda values: statistics.summary(values, groups)) <= 0.97
    assert coverage(draw, 0.5, quick, 500) < 0.93  # as if all were independent


def test_the_mean_of_kinds_counts_small_kinds_as_much_as_large_ones():
    kinds = ["a"] * 40 + ["b"] * 10
    assert statistics.summary([1.0] * 40 + [0.0] * 10, kinds=kinds).value == 0.5

    def draw(generator):
        return np.concatenate([generator.random(40) < 0.8, generator.random(10) < 0.4]).astype(float)

    assert 0.93 <= coverage(draw, 0.6, lambda values: statistics.summary(values, kinds=kinds)) <= 0.97


def test_one_question_of_each_kind_is_as_good_as_so_many_questions():
    values = [1.0] * 10 + [0.0] * 10
    assert statistics.summary(values, kinds=[str(place) for place in range(20)]) == statistics.summary(values)


def test_figures_from_0_to_1_have_intervals_from_0_to_1():
    groups = [str(place // 2) for place in range(20)]
    assert statistics.summary([0.1] + [0.0] * 19, groups).low == 0.0


def test_an_interval_is_not_empty_where_all_answers_are_right():
    groups = [str(place // 5) for place in range(N)]
    assert statistics.summary([1.0] * N).low < 0.94
    assert statistics.summary([1.0] * N, groups).low < 0.75  # ten passages, not fifty questions
    assert statistics.as_published(1.0, N) == 0.0


def test_the_bootstrap_is_deterministic_and_knows_the_mean_and_its_error():
    values = np.random.default_rng(2).normal(size=500)
    first, second = statistics.bootstrap(values), statistics.bootstrap(values)
    assert first == second
    assert first.value == pytest.approx(values.mean())
    assert first.stderr == pytest.approx(values.std() / np.sqrt(500), rel=0.1)
    assert statistics.bootstrap([]).n == 0


def test_a_paired_comparison_sees_a_small_difference_that_overlapping_intervals_hide():
    generator = np.random.default_rng(3)
    base = generator.uniform(size=200)
    better = np.clip(base + 0.03, 0, 1)
    assert statistics.bootstrap(better).low < statistics.bootstrap(base).high
    assert statistics.compared(better, base).word == "better"
    assert statistics.compared(base, base + generator.normal(0, 0.1, 200)).word == "no difference shown"


def test_the_paired_test_of_yes_and_no_is_mcnemars_and_its_false_alarms_are_few():
    first = [1.0] * 10 + [0.0] * 2 + [1.0] * 30
    second = [0.0] * 10 + [1.0] * 2 + [1.0] * 30
    assert statistics.compared(first, second).p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    generator = np.random.default_rng(5)
    alarms = [statistics.sign_test(generator.normal(size=40), draws=400, seed=place) < 0.05 for place in range(600)]
    assert 0.025 <= np.mean(alarms) <= 0.075


def test_a_difference_as_large_as_the_detectable_one_is_found_in_80_of_100_trials():
    generator = np.random.default_rng(6)
    gains = [generator.normal(0.1, 0.4, 126) for _ in range(500)]
    assert np.mean([statistics.compared(one, one * 0).detectable for one in gains]) == pytest.approx(0.1, abs=0.01)
    found = [abs(one.mean()) > statistics.student(125) * one.std(ddof=1) / np.sqrt(126) for one in gains]
    assert 0.75 <= np.mean(found) <= 0.85


def test_among_many_tests_only_what_stands_out_of_all_is_a_finding():
    assert statistics.benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    generator = np.random.default_rng(7)
    found = [min(statistics.benjamini_hochberg(generator.uniform(size=20).tolist())) <= 0.05 for _ in range(1000)]
    assert np.mean(found) <= 0.07
    assert statistics.benjamini_hochberg([]) == []


def test_what_did_not_move_may_still_differ_and_fewer_than_six_moved_questions_show_nothing():
    same = statistics.compared([0.0] * 45, [0.0] * 45)
    assert same.difference.low == -same.difference.high == pytest.approx(-0.064, abs=0.001)
    assert same.detectable == pytest.approx(6 / 45)
    five = statistics.compared([1.0] * 5 + [0.0] * 45, [0.0] * 50)
    six = statistics.compared([1.0] * 6 + [0.0] * 44, [0.0] * 50)
    assert five.p > 0.05 > six.p
    assert five.detectable >= 6 / 50
