"""Duplicates: URLs, documents, lines."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curate.dedup import duplicates as dedup
from herd.curate.dedup.duplicates import DocumentDedup


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


def joined(num_documents, pairs):
    clusters = dedup.Clusters(num_documents)
    for left, right in pairs:
        clusters.join(np.array(left), np.array(right))
    return clusters.roots(np.arange(num_documents)).tolist()


def test_clusters_join_whatever_the_order_of_pairs():
    pairs = [([4, 2], [5, 3]), ([3], [4]), ([0], [0])]
    assert joined(7, pairs) == joined(7, pairs[::-1]) == [0, 1, 2, 2, 2, 2, 6]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_clusters_are_what_a_walk_along_the_pairs_finds(pairs):
    neighbours = {i: {i} for i in range(31)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    walk = []
    for start in range(31):
        seen, waiting = {start}, [start]
        while waiting:
            waiting += (fresh := neighbours[waiting.pop()] - seen)
            seen |= fresh
        walk.append(min(seen))
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    assert joined(31, [(np.array(left, int), np.array(right, int))]) == walk


def test_candidates_pair_with_the_first_and_with_the_one_before():
    keys = np.array([7, 3, 7, 9, 7, 3], dtype=np.uint64)
    left, right = dedup.candidate_pairs(keys, np.array([10, 11, 12, 13, 14, 15]))
    assert sorted(zip(left.tolist(), right.tolist())) == [(10, 12), (10, 14), (11, 15), (12, 14)]
    assert [len(side) for side in dedup.candidate_pairs(np.array([1, 2, 3], dtype=np.uint64))] == [0, 0]


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
    for verify in ("signature", "exact"):
        replaced = dedup.near_duplicates(texts, DocumentDedup(verify=verify, keep="first")).tolist()
        firsts = [truth.index(cluster) for cluster in truth]
        assert replaced == [-1 if first == i else first for i, first in enumerate(firsts)]


def test_shingles_are_the_set_of_word_n_grams():
    texts = pa.array(["one two three four", "Two, three four -- FIVE", "one two", "", "a b a b a b"], pa.large_string())
    values, sizes = dedup.shingles(texts, 3)
    assert sizes.tolist() == [2, 2, 1, 1, 2]
    sets = np.split(values, np.cumsum(sizes)[:-1])
    assert dedup.jaccard(sets[0], sets[1]) == 1 / 3 and dedup.jaccard(sets[0], sets[2]) == 0


def test_empty_input_has_no_duplicates():
    signature = dedup.signatures(pa.array([], pa.string()), DocumentDedup())
    assert dedup.band_keys(signature, 8).shape == (0, 14)


def test_lines_meet_when_only_case_digits_and_outer_space_differ():
    keys = dedup.line_keys(["  Page 3 of 10", "page 27 of 8 ", "Page three", "----", "", "12"])
    assert keys[0] == keys[1] != keys[2]
    assert keys[3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("keep_first", [True, False])
def test_lines_seen_too_often_are_dropped_but_for_the_first(keep_first):
    draw = np.random.default_rng(0)
    keys, places = draw.integers(0, 50, 400, dtype=np.uint64), draw.permutation(400)
    found = dedup.repeated_lines(keys, places, 8, keep_first)
    wanted = []
    for key in set(keys.tolist()) - {0}:
        mine = sorted(places[keys == key].tolist())
        wanted += mine[keep_first:] if len(mine) > 8 else []
    assert sorted(found.tolist()) == sorted(wanted)
    assert len(dedup.repeated_lines(keys[:0], places[:0], 8, keep_first)) == 0


def test_buckets_count_their_own_lines():
    keys, documents = np.array([9, 9, 0], dtype=np.uint64), np.array([0, 10, 10])
    in_buckets = dedup.bucket_keys(keys, documents, 10)
    assert in_buckets[0] != in_buckets[1] and in_buckets[2] == 0


def test_a_line_counts_once_a_document_and_stays_whole_in_the_first():
    refrain = np.full(30, 7, dtype=np.uint64)  # a table's rows, a refrain: thirty times on one page
    assert dedup.repeated_lines(refrain, np.arange(30), 6, True, np.zeros(30, np.int64)).size == 0
    documents = np.repeat(np.arange(8), 2)
    places = dedup.repeated_lines(np.full(16, 7, dtype=np.uint64), np.arange(16), 6, True, documents)
    assert places.tolist() == list(range(2, 16))


def test_session_ids_are_long_and_random_and_other_numbers_are_part_of_the_address():
    stories = {dedup.normal_url(f"http://a.org/article.php?sid={number}") for number in range(100, 104)}
    assert len(stories) == 4 and dedup.normal_url("http://a.org/x?sid=main-page") != dedup.normal_url("http://a.org/x")
    session = "http://a.org/x?PHPSESSID=9f86d081884c7d659a2feaa0c55ad015"
    assert (
        dedup.normal_url(session)
        == dedup.normal_url("http://a.org/x?sid=4bf92f3577b34da6a3ce")
        == dedup.normal_url("http://a.org/x")
    )


def test_a_session_may_stand_in_the_path_and_a_canonical_link_among_others():
    address = "http://a.org/x;jsessionid=AB12CD34EF56AB78CD90?page=2"
    assert dedup.normal_url(address) == dedup.normal_url("http://a.org/x?page=2") and dedup.has_session(address)
    assert ";v=2" in dedup.normal_url("http://a.org/x;v=2;sid=7") and not dedup.has_session("http://a.org/x;v=2;sid=7")
    link = b"<link href=//b.org/z rel='shortlink canonical'>"
    assert dedup.canonical_url(link, "https://a.org/") == "https://b.org/z"
    assert dedup.canonical_url(b"<link rel=next href=/canonical>", "https://a.org/") == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.org/%7Eanne/", "http://a.org/~anne"),
        ("http://a.org/a%2fb", "http://a.org/a%2Fb"),
        ("http://a.org/./b/../x", "http://a.org/x"),
        ("http://a.org/../x", "http://a.org/x"),
        ("http://a.org/x?a=1&amp;b=2", "http://a.org/x?a=1&b=2"),
        ("http://bücher.de/ü", "http://xn--bcher-kva.de/%C3%BC"),
        ("http://a.org/x?yclid=1&_ga=2.1", "http://a.org/x"),
        ("http://a.org/x?s=a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6", "http://a.org/x"),
        ("http://a.org/(S(a1b2c3d4e5f6a7b8c9d0a1b2))/x.aspx", "http://a.org/x.aspx"),
    ],
)
def test_escapes_dots_and_session_ids_make_no_other_address(one, other):
    assert dedup.normal_url(one) == dedup.normal_url(other)


def test_readable_ids_are_stories_and_links_in_comments_and_scripts_name_no_page():
    for one, other in (
        ("how-bees-fly-in-2024", "how-ants-walk-in-2024"),
        ("SIDNEY2000OLYMPICS", "ATLANTA1996OLYMPICS"),
    ):
        assert dedup.normal_url(f"http://a.org/?sid={one}") != dedup.normal_url(f"http://a.org/?sid={other}")
    assert dedup.normal_url("http://a.org/?s=hello") != dedup.normal_url("http://a.org/?s=world")
    for before in (b"<!-- <link rel=canonical href=/bad> -->", b"<script>'<link rel=canonical href=/bad>'</script>"):
        assert dedup.canonical_url(before + b'<LINK HREF="/x" REL="CANONICAL">', "http://a.org/y") == "http://a.org/x"
