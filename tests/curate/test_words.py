"""Words by script: one measure for n-grams, near-duplicates and decontamination."""

import gzip
import json
import random
from collections import Counter

import numpy as np
import pytest

from herd.curate.dedup.duplicates import DocumentDedup, near_duplicates
from herd.curate.extract.part import group_of
from herd.curate.filters.decontaminate import Benchmarks, Contamination
from herd.curate.funnel import heavy_losses
from herd.curate.judge.documents import Judge, Rules
from herd.curate.judge.rules import Heuristics, Quality
from herd.curate.ngrams import WORD_WEIGHT, ngram_numbers, weighed_ngrams, weighed_words, word_numbers


def test_words_with_spaces_are_counted_as_before_and_characters_as_parts_of_words():
    text = "The bees fly early, and they come home late in the evening."
    words = weighed_words(text)
    assert set(words.weights.tolist()) == {WORD_WEIGHT} and (words.numbers == word_numbers(text)).all()
    assert len(weighed_ngrams(words, 5)[0]) == len(ngram_numbers(words.numbers, 5))
    for text, length in (("蜜蜂每天早上从蜂巢飞出来寻找花朵", 10), ("ผึ้งบินออกจากรังทุกเช้าเพื่อหาดอกไม้ในสวน", 20)):
        words = weighed_words(text)
        ends = weighed_ngrams(words, 5)[1]
        assert len(ends) and ends[0] == length
    assert weighed_ngrams(weighed_words("bees"), 2)[0].shape == (0,)


def test_equal_runs_have_equal_numbers_wherever_they_stand():
    one, other = weighed_words("x y 蜜蜂每天早上 fly home now"), weighed_words("z 蜜蜂每天早上 fly home now q r")
    shared = np.intersect1d(weighed_ngrams(one, 4)[0], weighed_ngrams(other, 4)[0])
    assert len(shared) >= 4


@pytest.fixture(scope="module")
def thai(shared_data):
    with gzip.open(shared_data / "text-thaigov/docs.jsonl.gz", "rt", encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


def test_thai_news_share_no_benchmark_by_a_state_s_name_but_by_a_sentence(tmp_path, thai):
    asked = [text[200:420] for text in thai[:40]]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in asked))
    found = Benchmarks(Contamination(benchmarks=[tmp_path / "news.jsonl"]))
    own = [bool(found.find(text)) for text in thai[:40]]
    others = [bool(found.find(text)) for text in thai[100:]]
    assert sum(own) >= 0.9 * len(own) and sum(others) <= 0.05 * len(others)


def test_what_many_documents_share_is_no_leak(tmp_path):
    creed = "it was the best of times it was the worst of times it was the age of wisdom"
    (tmp_path / "books.jsonl").write_text(json.dumps({"question": creed + " who wrote these famous words"}))
    found = Benchmarks(Contamination(benchmarks=[tmp_path / "books.jsonl"], most_documents=20))
    documents = [f"Number {i} quotes it: {creed}, and goes on by itself with {i * 7}." for i in range(30)]
    assert all(map(found.find, documents))
    counts = Counter(n for text in documents for n in found.ngrams_in(text))
    assert found.leave_out(counts) > 0 and not any(map(found.find, documents))


def test_near_copies_of_chinese_and_thai_texts_are_found(thai):
    draw = random.Random(4)
    characters = [chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(400)]
    changed = [*characters[:200], "蜜", "蜂", *characters[202:]]
    texts = [
        "".join(characters),
        "".join(changed),
        "".join(reversed(characters)),
        thai[0],
        thai[0][:-30] + "ครับ",
        thai[1],
    ]
    assert near_duplicates(texts, DocumentDedup(keep="first")).tolist() == [-1, 0, -1, -1, 3, -1]


@pytest.mark.parametrize(
    ("url", "kind", "group"),
    [
        ("https://www.shop.bees.co.uk/x?y=1", "site", "bees.co.uk"),
        ("https://www.shop.bees.co.uk/x?y=1", "host", "shop.bees.co.uk"),
        ("https://www.shop.bees.co.uk/x?y=1", "page", "https://www.shop.bees.co.uk/x?y=1"),
        ("http://192.168.0.1/x", "site", "192.168.0.1"),
        ("http://jane.github.io/x", "site", "github.io"),
        ("git:bees@abc/x.py", "site", "git:bees"),
        ("pages.jsonl#17", "site", "pages.jsonl#17"),
    ],
)
def test_a_site_is_its_registered_domain(url, kind, group):
    assert group_of(url, kind) == group


def test_rules_that_drop_more_than_half_of_a_source_say_so():
    tables = {
        "source": {"web": {"kept": 30, "bytes": 99, "c4_sentences": 40, "near_duplicate": 500}, "code": {"kept": 20}}
    }
    assert heavy_losses({"tables": tables}) == ["the rules dropped 40 of 70 documents of `web`: c4_sentences 40"]


def test_technical_pages_are_held_to_a_least_score_by_a_classifier_of_their_own_only():
    from herd.curate.funnel import Step

    code = "\n".join(f"def bee_{i}(honey):\n    return honey[{i}] + {i * 7}" for i in range(30))
    row = {"id": "1", "url": "http://a.org/1", "text": code, "kind": "html", "drop": None, "source": "web"}
    row |= {"language": "en", "code_lines": [0, 60]}
    steps = {name: Step(name) for name in Judge.STEPS}
    judge = Judge(Rules(quality=Quality(min_score=0.99)))
    assert judge.judge(dict(row), steps) and steps["quality"].tables["code: spared"]["quality"] == 1
    strict = Judge(Rules(quality=Quality(min_score=0.99), heuristics=Heuristics(exempt=["maths"], enabled=False)))
    assert not strict.judge(dict(row), {name: Step(name) for name in Judge.STEPS})
