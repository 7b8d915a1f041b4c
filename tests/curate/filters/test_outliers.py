"""Words as numbers, and documents whose words are none of their corpus."""

import gzip
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
from herd.curate.filters.outliers import Outliers, WordCounts, load_counts, save_counts
from herd.curate.judge.documents import Heuristics, Quality, Rules
from herd.curate.ngrams import ngram_numbers, word_numbers, word_spans
from herd.curate.pipeline import Work, curate
from herd.curate.read.pages import find_files

WORDS = [a + b + c for a in "bdfklmnprstvz" for b in "aeiou" for c in ("n", "ra", "sto", "lu", "mer")]


def page(seed, length=None, words=WORDS):
    draw = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return " ".join(draw.choices(words, weights, k=length or draw.randrange(40, 400)))


def test_words_have_the_same_number_wherever_they_stand():
    numbers = word_numbers("The bee, the BEE; a bee-hive 12 été")
    assert numbers[0] == numbers[2] and numbers[1] == numbers[3] == numbers[5] and len(set(numbers.tolist())) == 6
    assert word_numbers("x " * 100_000 + "bee")[-1] == numbers[1]  # beyond the first chunk
    assert len(word_numbers("蜜蜂飞 bee ไทย")) == 3 + 1 + 3 and len(word_numbers("")) == 0
    assert word_numbers("bee").dtype == np.uint64


def test_ngrams_tell_order_apart():
    words = word_numbers("a b c a b d")
    pairs = ngram_numbers(words, 2)
    assert pairs[0] == pairs[3] and len(set(pairs.tolist())) == 4
    assert ngram_numbers(words, 6).shape == (1,) and ngram_numbers(words, 7).shape == (0,)
    assert ngram_numbers(word_numbers("a b"), 2) != ngram_numbers(word_numbers("b a"), 2)


@given(st.text(max_size=300))
def test_spans_and_numbers_agree(text):
    spans = word_spans(text.lower())
    assert len(spans) == len(word_numbers(text))
    assert all(start < end for start, end in spans)
    lower = text.lower()
    same = {}
    for (start, end), number in zip(spans, word_numbers(lower).tolist(), strict=True):
        assert same.setdefault(lower[start:end], number) == number


@pytest.fixture(scope="module")
def fitted():
    words = WordCounts()
    for seed in range(200):
        words.add(page(seed))
    return Outliers.fit({"xx": words})


def test_a_page_of_other_words_lies_far_and_a_usual_one_near(fitted):
    usual = [fitted.distance(page(1000 + seed), "xx") for seed in range(100)]
    assert abs(np.median(usual)) < 0.5 and np.quantile(usual, 0.95) < 3.5
    strange = page(1, 200, [word[::-1] + "q" for word in WORDS])
    assert fitted.distance(strange, "xx") > 20
    mixed = page(3, 200) + " " + " ".join(f"zq{i}" for i in range(100))
    assert fitted.distance(mixed, "xx") > 6
    assert fitted.rarest_words(mixed, "xx").startswith("zq")


def test_the_length_of_a_page_does_not_make_it_an_outlier(fitted):
    for length in (70, 120, 200, 350):
        distances = [fitted.distance(page(2000 + seed, length), "xx") for seed in range(40)]
        assert abs(np.median(distances)) < 2.5


def test_languages_of_few_pages_and_short_pages_are_not_judged(fitted):
    few = WordCounts()
    few.add(page(1))
    assert Outliers.fit({"yy": few}).distance(page(2), "yy") is None
    assert fitted.distance("ban bar", "xx") is None and fitted.distance(page(1), "zz") is None


def test_counts_of_parts_add_up_and_what_was_fitted_can_be_kept(fitted, tmp_path):
    for part in range(4):
        words = WordCounts()
        for seed in range(50 * part, 50 * part + 50):
            words.add(page(seed))
        save_counts({"xx": words}, tmp_path / f"{part}.npz", other=np.array([0, part]))
    again = Outliers.fit(load_counts(tmp_path / f"{part}.npz" for part in range(4)))
    again.save(tmp_path / "fitted.npz")
    loaded = Outliers.load(tmp_path / "fitted.npz")
    assert loaded.distance(page(9), "xx") == again.distance(page(9), "xx") == fitted.distance(page(9), "xx")


def test_twenty_planted_technical_pages_survive_outliers_and_a_least_score(tmp_path):
    draw = random.Random(8)
    ends = ("", "s", "keeper", "land", "wood")
    words = [a + b for a in ("bee", "hive", "garden", "river", "stone", "light") for b in ends]
    pages = {}
    for n in range(260):
        lines = [" ".join(draw.choice(words) for _ in range(12)) for _ in range(8)]
        pages[f"prose{n}"] = "".join(
            f"<p>The {line}, and that of the {line[::-1]}, have it with them.</p>" for line in lines
        )
    for n in range(20):
        code = "\n".join(f"def f_{n}_{i}(x: int) -> int:\n    return x ** {i * n + 3} % {i + 7}" for i in range(25))
        pages[f"tech{n}"] = (
            f"<h1>Module {n}</h1><p>The functions of module {n} raise x to a power.</p><pre>{code}</pre>"
        )
    for name, body in pages.items():
        (tmp_path / f"{name}.html").write_text(f"<html><body><main>{body}</main></body></html>")
    rules = Rules(heuristics=Heuristics(outliers=3.0), quality=Quality(min_score=0.4))
    out = tmp_path / "out"
    out.mkdir()
    curate(find_files([tmp_path]), out, rules, DocumentDedup(enabled=False), LineDedup(), Work(processes=1))
    rows = pq.read_table(out / "documents").to_pylist()
    technical = [row for row in rows if "/tech" in row["url"]]
    assert len(technical) == 20 and all(row["drop"] is None for row in technical)


def test_twenty_real_technical_pages_survive_and_the_funnel_tells_what_each_filter_took_of_their_kinds(
    shared_data, tmp_path
):
    def pages(name):
        with gzip.open(shared_data / name / "pages.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    manuals = [page for page in pages("html-sphinx-math-code") if len(page["source_rst"].split()) > 200][:20]
    rows = [{"url": f"https://docs-{page['id']}.org/m", "html": page["html"]} for page in manuals]
    for name in ("html-andy-articles", "html-article-extraction", "html-magic-article"):
        rows += [{"url": f"https://{name}.com/{n}", "text": page["text"]} for n, page in enumerate(pages(name))]
    (tmp_path / "pages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rules = Rules(heuristics=Heuristics(outliers=5.0), quality=Quality(min_score=0.6))
    out = tmp_path / "out"
    out.mkdir()
    off = DocumentDedup(enabled=False), LineDedup(enabled=False)
    curate(find_files([tmp_path / "pages.jsonl"]), out, rules, *off, Work(processes=1))
    found = pq.read_table(out / "documents").to_pylist()
    assert [row["drop"] for row in found if row["url"].startswith("https://docs-")] == [None] * 20
    assert "quality" in {row["drop"] for row in found}
    steps = {step["name"]: step for step in json.loads((out / "funnel.json").read_text())["steps"]}
    tables = steps["heuristics"]["tables"]
    technical = tables["pages"]["code"] + tables["pages"]["maths"]
    assert technical >= 15 and tables["pages"]["rare domain"] >= 10
    spared = {kind: sum(tables.get(f"{kind}: spared", {}).values()) for kind in ("code", "maths", "rare domain")}
    assert all(spared[kind] for kind in ("code", "maths")) and "prose: dropped" in tables
