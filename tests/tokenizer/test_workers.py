"""Worker processes: order, errors, and what happens when one is killed or its results are not taken."""

import os
import signal
import time

import pytest

from herd.errors import CapacityError
from herd.tokenizer.workers import Workers, in_parts


@pytest.fixture
def workers():
    made = []

    def make(function, num=2):
        made.append(Workers(function, num))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_results_come_in_the_order_of_the_items(workers):
    pair = workers(abs)
    assert list(pair.map(-n for n in range(50))) == list(range(50))
    assert list(pair.map([])) == []
    assert list(pair.map([-1])) == [1]


def test_an_error_arrives_here_and_ends_the_processes(workers):
    pair = workers(len)
    with pytest.raises(TypeError, match="has no len"):
        list(pair.map(["ab", 3]))
    assert not pair.usable


def test_what_a_worker_prints_does_not_mix_with_its_results(workers):
    assert list(workers(print).map(["x", "y"])) == [None, None]


def test_results_not_taken_end_the_processes_so_that_none_are_mistaken_later(workers):
    pair = workers(abs)
    results = pair.map(range(9))
    next(results)
    results.close()
    assert not pair.usable


def test_a_killed_worker_is_one_clear_message(workers):
    pair = workers(time.sleep)
    results = pair.map([0, 0, 30, 30])
    next(results)
    os.kill(pair._processes[0].pid, signal.SIGKILL)
    os.kill(pair._processes[1].pid, signal.SIGKILL)
    with pytest.raises(CapacityError, match="is there too little memory"):
        list(results)


def test_texts_are_handed_out_in_order_and_whole():
    texts = ["a" * n for n in range(100)]
    parts = list(in_parts(texts, 300))
    assert [text for part in parts for text in part] == texts
    assert all(sum(map(len, part[:-1])) < 300 for part in parts)
