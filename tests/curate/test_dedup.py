"""Duplicates: URLs, documents, lines."""

import random

import numpy as np
import pyarrow as pa
import pytest

from herd.curate import dedup
from herd.curate.dedup import DocumentDedup


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTP://Example.com:80/a/", "https://example.com/a"),
        ("http://www.a.org/x?utm_source=b&id=1", "http://a.org/x?id=1"),
        ("http://a.org/x#part", "http://a.org/x"),
    ],
)
def test_spellings_of_one_address_meet(one, other):
    assert dedup.normal_url(one) == dedup.normal_url(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.org/x?id=1", "http://a.org/x?id=2"),
        ("http://a.org:8080/", "http://a.org/"),
        ("http://a.org/#!/x", "http://a.org/#!/y"),
        ("pages.jsonl#1", "pages.jsonl#2"),
        ("http://[bad", "http://[worse"),
    ],
)
def test_different_addresses_stay_apart(one, other):
    assert dedup.normal_url(one) != dedup.normal_url(other)


def test_the_newest_copy_of_a_url_replaces_the_others():
    keys = np.array([5, 7, 5, 5, 7], dtype=np.uint64)
    dates = np.array([20, 1, 30, 30, 1])
    assert dedup.older_copies(keys, dates).tolist() == [2, -1, -1, 2, 1]  # of equally new ones the first stays


def test_clusters_join_whatever_the_order_of_pairs():
    pairs = [(np.array([4, 2]), np.array([5, 3])), (np.array([3]), np.array([4])), (np.array([0]), np.array([0]))]
    assert dedup.clusters(7, iter(pairs)).tolist() == [0, 1, 2, 2, 2, 2, 6]
    assert dedup.clusters(7, iter(pairs[::-1])).tolist() == [0, 1, 2, 2, 2, 2, 6]


def test_the_longest_of_a_cluster_survives():
    cluster, length = np.array([0, 0, 2, 0]), np.array([10, 30, 5, 30])
    assert dedup.survivors(cluster, length).tolist() == [1, -1, -1, 1]


def test_estimated_similarity_is_near_the_true_one():
    draw = random.Random(0)
    words = [f"w{draw.randrange(10**6)}" for _ in range(2000)]
    changed = list(words)
    for i in draw.sample(range(2000), 60):
        changed[i] = f"c{i}"
    options = DocumentDedup(bands=32, rows=8)
    one, other = dedup.signatures(pa.array([" ".join(words), " ".join(changed)]), options)
    shingles = [{tuple(text[i : i + 5]) for i in range(1996)} for text in (words, changed)]
    truth = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    assert dedup.similar(one[None], other[None])[0] == pytest.approx(truth, abs=0.1)


def test_case_and_punctuation_do_not_tell_documents_apart():
    one, other = dedup.signatures(
        pa.array(["The bees fly early, today!", "the BEES fly -- early today"]), DocumentDedup()
    )
    assert (one == other).all()


def test_planted_clusters_are_found_and_nothing_else():
    draw = random.Random(1)
    texts, truth = [], []
    for cluster in range(60):
        base = [f"w{draw.randrange(5000)}" for _ in range(300)]
        for _ in range(draw.choice([1, 1, 2, 5])):
            copy = list(base)
            for i in draw.sample(range(300), 3):  # at most 15 of 296 shingles differ: similarity above 0.9
                copy[i] = f"x{draw.randrange(10**6)}"
            texts.append(" ".join(copy))
            truth.append(cluster)
    options = DocumentDedup()
    signature = dedup.signatures(pa.array(texts), options)
    keys = dedup.band_keys(signature, options.rows)
    found = dedup.clusters(len(texts), (dedup.candidate_pairs(keys[:, band]) for band in range(options.bands)))
    assert found.tolist() == [truth.index(cluster) for cluster in truth]


def test_empty_input_has_no_duplicates():
    signature = dedup.signatures(pa.array([], pa.string()), DocumentDedup())
    assert dedup.band_keys(signature, 8).shape == (0, 14)


def test_lines_meet_when_only_case_digits_and_outer_space_differ():
    keys = dedup.line_keys(["  Page 3 of 10", "page 27 of 8 ", "Page three", "----", "", "12"])
    assert keys[0] == keys[1] != keys[2]
    assert keys[3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("partitions", [1, 3, 16])
def test_repeated_lines_are_the_same_for_any_number_of_partitions(partitions):
    draw = np.random.default_rng(0)
    keys, documents = draw.integers(0, 50, 400, dtype=np.uint64), np.arange(400) // 4

    def slices(partition, count):
        mine = keys % np.uint64(count) == partition
        return keys[mine], documents[mine]

    found, first = dedup.repeated_lines(slices, partitions, 8)
    counted = {int(key): int((keys == key).sum()) for key in set(keys.tolist()) if key}
    assert {int(key) for key in found} == {key for key, count in counted.items() if count > 8}
    assert all(first[i] == documents[keys == key].min() for i, key in enumerate(found))


def test_buckets_count_their_own_lines():
    keys, documents = np.array([9, 9, 0], dtype=np.uint64), np.array([0, 10, 10])
    in_buckets = dedup.bucket_keys(keys, documents, 10)
    assert in_buckets[0] != in_buckets[1] and in_buckets[2] == 0
