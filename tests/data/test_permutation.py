import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from herd.data.permutation import permute


@given(st.integers(1, 3000), st.integers(0, 2**70))
def test_a_shuffle_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_one_element_is_found_without_the_others():
    whole = permute(np.arange(1000), 1000, 5)
    assert all(permute(np.array([i]), 1000, 5)[0] == whole[i] for i in range(0, 1000, 37))


def test_another_key_is_another_shuffle():
    first, second = permute(np.arange(1000), 1000, 1), permute(np.arange(1000), 1000, 2)
    assert (first == second).mean() < 0.02


def test_a_shuffle_looks_random():
    places = permute(np.arange(10_000), 10_000, 3)
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.03


def test_huge_sources_need_no_memory():
    places = permute(np.array([0, 1, 10**14]), 10**15, 9)
    assert len(set(places.tolist())) == 3 and places.max() < 10**15
