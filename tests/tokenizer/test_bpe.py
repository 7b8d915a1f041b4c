"""Training: counting, merging, and their readable twins."""

import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import ConfigError
from herd.tokenizer import Tokenizer, merges, pretokens
from herd.tokenizer.extend import extend
from herd.tokenizer.merges import learn_merges, merge_pair, reference_merges
from tests.tokenizer.wild import TEXTS, WILD_TEXT


@given(st.lists(st.lists(WILD_TEXT, max_size=5).map("\n".join), max_size=5))
@settings(max_examples=300, deadline=None)
def test_fast_counting_equals_the_split_pattern(texts):
    assert pretokens.count_pretokens(texts).words == pretokens.reference_count(texts)


@given(
    st.lists(st.tuples(st.text(alphabet="abc", min_size=1, max_size=15), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(0, 60),
)
@settings(max_examples=300, deadline=None)
def test_fast_merges_equal_the_plain_algorithm(words_and_counts, num_merges):
    words = [word.encode() for word, _ in words_and_counts]
    counts = [count for _, count in words_and_counts]
    for few in (0, 2, 48):  # places up to which a plain loop is taken instead of NumPy
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(merges, "_FEW", few)
            fast = list(learn_merges(words, counts, [1] * 256, num_merges))
        assert fast == reference_merges(words, counts, 256, num_merges)


def test_merges_of_real_text_equal_the_plain_algorithm():
    counts = pretokens.count_pretokens(TEXTS).words
    words = [word.encode() for word in counts]
    fast = list(learn_merges(words, list(counts.values()), [1] * 256, 300))
    assert fast == reference_merges(words, list(counts.values()), 256, 300)


def test_merging_goes_from_the_left():
    assert merge_pair([1, 2, 3, 1, 2], (1, 2), 4) == [4, 3, 4]
    assert merge_pair([1, 1, 1], (1, 1), 2) == [2, 1]


@given(st.text(alphabet="ab", min_size=1, max_size=300))
@settings(max_examples=100, deadline=None)
def test_a_token_made_in_two_ways_stands_once(text):
    trained = Tokenizer.train([text], 560)
    assert list(trained.ranks.values()) == list(range(len(trained.ranks)))
    assert trained.decode(trained.encode(text)) == text


def test_an_endless_page_is_counted_in_pieces(monkeypatch):
    page = "".join(TEXTS)
    exact = pretokens.reference_count([page])
    monkeypatch.setattr(pretokens, "_BATCH_CHARS", 500)
    assert max(map(len, pretokens._bounded(page))) <= 1000
    assert pretokens.count_pretokens([page]).words == exact


def test_counts_beyond_32_bits_are_exact():
    words, counts = [b"ab", b"bc"], [2**40, 2**40 + 1]
    assert list(learn_merges(words, counts, [1] * 256, 1)) == [(ord("b"), ord("c"))]


def test_the_order_of_the_texts_does_not_matter():
    shuffled = TEXTS * 2
    random.Random(0).shuffle(shuffled)
    assert Tokenizer.train(shuffled, 800).fingerprint == Tokenizer.train(TEXTS * 2, 800).fingerprint


def test_training_reads_a_stream_once(tokenizer):
    assert Tokenizer.train(iter(TEXTS), 1500).fingerprint == tokenizer.fingerprint


def test_the_vocabulary_has_the_size_asked_for(tokenizer):
    assert tokenizer.vocab_size == 1500
    assert len(tokenizer.ranks) == 1500 - 256
    assert Tokenizer.train(TEXTS, 512).vocab_size == 512


def test_a_text_too_small_for_the_merges_gives_a_smaller_vocabulary():
    small = Tokenizer.train(["abab"], 8192)
    assert small.vocab_size == 256 + 2 + 256
    assert small.decode(small.encode("abab")) == "abab"
    assert Tokenizer.train([], 8192).vocab_size == 512


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigError, match="vocab_size 500 is too small"):
        Tokenizer.train(TEXTS, 500)


def test_the_memory_limit_holds_and_says_what_it_cost():
    texts = [f"common rare{letter}{other}" for letter in "abcdefghij" for other in "abcdefghij"]
    sizes = []
    counts = pretokens.PretokenCounts()
    for text in texts:
        pretokens.count_pretokens(
            [text], counts=counts, max_distinct=20, after_batch=lambda c: sizes.append(len(c.words))
        )
    assert max(sizes) <= 20
    exact = pretokens.reference_count(texts)
    assert counts.words["common"] + counts.shortfall >= exact["common"] >= counts.words["common"]
    assert counts.shortfall < 10
    assert counts.num_texts == 100


def test_counting_in_other_processes_gives_the_same(monkeypatch):
    texts = TEXTS * 6
    alone = pretokens.count_pretokens(texts)
    monkeypatch.setattr(pretokens, "_ALONE_BATCHES", 1)
    monkeypatch.setattr(pretokens, "_BATCH_CHARS", 5_000)
    monkeypatch.setattr(pretokens, "num_cores", lambda: 2)
    assert pretokens.count_pretokens(texts) == alone


def test_training_on_a_book_takes_seconds():
    library = Path(random.__file__).parent
    text = [
        (library / name).read_text(encoding="utf-8") for name in ("random.py", "typing.py", "argparse.py", "ast.py")
    ]
    trained = Tokenizer.train(text, 2048)
    assert trained.vocab_size == 2048
    assert len(trained.encode(text[0])) < len(text[0]) / 3


# ---- extend ----------------------------------------------------------------------------------------------------------


THAI = ["มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม\n" * 4]


def test_extending_keeps_the_base_and_shortens_the_new_language(tokenizer):
    extended = extend(tokenizer, THAI, 40)
    assert extended.vocab_size == tokenizer.vocab_size + 40
    assert list(extended.ranks.items())[: len(tokenizer.ranks)] == list(tokenizer.ranks.items())
    assert list(extended.special) == list(tokenizer.special)
    assert extended.bos_id == tokenizer.bos_id + 40
    assert len(extended.encode(THAI[0])) < 0.7 * len(tokenizer.encode(THAI[0]))
    assert extended.decode(extended.encode(THAI[0])) == THAI[0]
    for text in (TEXTS[0], TEXTS[1], TEXTS[3]):
        assert extended.encode(text) == tokenizer.encode(text)


@given(WILD_TEXT | st.sampled_from([text[i : i + 60] for text in [*TEXTS, *THAI] for i in range(0, len(text), 60)]))
@settings(max_examples=200, deadline=None)
def test_text_that_no_new_merge_touches_is_encoded_as_by_the_base(tokenizer, text):
    extended = _extended_once(tokenizer)
    ids = extended.encode(text)
    if all(token < len(tokenizer.ranks) for token in ids):
        assert ids == tokenizer.encode(text)
    else:
        assert len(ids) < len(tokenizer.encode(text))
    assert extended.decode(ids) == tokenizer.decode(tokenizer.encode(text))


@cache
def _extended_once(tokenizer):
    return extend(tokenizer, THAI, 40)


def test_extending_the_bytes_alone_is_training(tokenizer):
    only_bytes = Tokenizer.train([], 512)
    assert extend(only_bytes, TEXTS, 1500 - 512).fingerprint == tokenizer.fingerprint


def test_llama3_extended_keeps_its_golden_ids(llama):
    extended = extend(llama, THAI, 10)
    assert extended.encode("This is a test sentence.") == [2028, 374, 264, 1296, 11914, 13]
    assert (extended.bos_id, extended.vocab_size) == (128010, 128266)
    assert len(extended.encode(THAI[0])) < len(llama.encode(THAI[0]))


def test_endless_pretokens_count_as_several_toward_the_memory_limit():
    counts = pretokens.PretokenCounts()
    texts = [" ".join(f"{chr(97 + i)}" * 6_400 for i in range(26)), "the cat " * 50]
    pretokens.count_pretokens(texts, counts=counts, max_distinct=200)
    assert sum(len(word) for word in counts.words) < 200 * 64
    assert counts.words[" cat"] == 50 and counts.shortfall == 1


_TRAIN_ON_EVER_NEW_WORDS = """
import random, re
from pathlib import Path
from herd.tokenizer import Tokenizer
draw = random.Random(0).choices
texts = (" ".join("".join(draw("abcdefghijklmnopqrst", k=9)) for _ in range(10_000)) for _ in range(200))
Tokenizer.train(texts, 1000, max_pretokens=100_000)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")
def test_memory_stays_within_its_limit_on_ever_new_words():
    """Two million distinct pre-tokens: all of them would take a gigabyte."""
    command = [sys.executable, "-c", _TRAIN_ON_EVER_NEW_WORDS]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 200


def test_the_processes_that_count_load_neither_numpy_nor_the_tokenizer():
    code = "import sys, herd.tokenizer.pretokens; print(sorted({'numpy', 'tiktoken', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
