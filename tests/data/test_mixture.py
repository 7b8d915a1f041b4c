import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from herd.data.mixture import turns

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(0, 5000))
def test_counts_sum_to_the_rows_and_follow_the_weights(weights, num_rows):
    counts = turns(weights, num_rows)
    exact = np.array(weights) / sum(weights) * num_rows
    assert counts.sum() == num_rows
    assert np.abs(counts - exact).max() < 1 + len(weights) / 2


@given(WEIGHTS, st.integers(0, 2000))
def test_one_more_row_goes_to_exactly_one_source(weights, num_rows):
    added = turns(weights, num_rows + 1) - turns(weights, num_rows)
    assert added.min() >= 0 and added.sum() == 1


def test_a_source_without_weight_is_never_drawn():
    assert turns([1.0, 0.0], 1000).tolist() == [1000, 0]
