"""Long prompts with something to find: what is asked for stands in them, at its depth, and they are as long as said."""

import json
from collections import Counter

import pytest

from herd import cli
from herd.evals.haystack import KINDS, NEEDLES, made_row, sentences_of
from herd.evals.scorers import fresh, fresh_by_eighth, recall
from tests.post.models import WORDS, save_model, small_tokenizer

TEXT = sentences_of(" ".join(f"Sentence {n} of a dull text tells nothing of note." for n in range(400)))
QUESTIONS = [
    {
        "context": f"Passage {n} says that the code is x{n}.",
        "question": f"What does passage {n} say?",
        "answers": [f"x{n}"],
    }
    for n in range(30)
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_stands_in_a_prompt_of_the_length_that_was_said(kind):
    tokenizer = small_tokenizer()
    row = made_row(kind, tokenizer, TEXT, length=3000, depth=0.5, trial=1, questions=QUESTIONS)
    assert row == made_row(kind, tokenizer, TEXT, length=3000, depth=0.5, trial=1, questions=QUESTIONS)
    assert len(tokenizer.encode(row["prompt"])) <= 3000 - 64
    assert row["answers"]
    assert all(answer in row["prompt"] for answer in row["answers"])
    assert row["prompt"].rstrip().endswith("Answer:")
    assert recall(f"I found {' and '.join(row['answers'])}", row["answers"]) == 1


def test_a_needle_stands_where_its_depth_says_and_texts_are_the_same_at_all_depths():
    rows = [made_row("plain", small_tokenizer(), TEXT, length=3000, depth=depth, trial=0) for depth in (0.0, 0.5, 1.0)]
    places = [row["prompt"].index("The magic number") / len(row["prompt"]) for row in rows]
    assert places[0] < 0.1 < 0.4 < places[1] < 0.6 < 0.85 < places[2]
    assert len({Counter(row["prompt"].split()).total() for row in rows}) == 1
    assert len({row["question"] for row in rows}) == 1


def test_the_words_that_are_asked_for_are_the_most_frequent():
    for kind in ("common", "frequent"):
        row = made_row(kind, small_tokenizer(), TEXT, length=4000, depth=0.5, trial=0)
        words = row["prompt"].split("\n\n")[1].split(", ")
        most = [word for word, _ in Counter(words).most_common(len(row["answers"]))]
        assert sorted(most) == sorted(row["answers"])


def test_rows_from_the_command_line_are_asked_and_the_page_maps_them(tmp_path):
    model = save_model(tmp_path / "model")
    (tmp_path / "book.txt").write_text(" ".join([WORDS + "."] * 400))
    words = [f"path={model}", f"text=[{tmp_path / 'book.txt'}]", "lengths=[256]", "kinds=[plain, frequent]", "trials=1"]
    assert cli.main(["haystack", *words, f"out={tmp_path / 'h'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "h" / "rows.jsonl").read_text().splitlines()]
    assert Counter(row["kind"] for row in rows) == {"plain": 5, "frequent": 1}
    assert {row["depth"] for row in rows if row["kind"] in NEEDLES} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert cli.main(["evaluate", str(model), "suite=long", f"data={tmp_path / 'h'}", f"out={tmp_path / 'e'}"]) == 0
    page = (tmp_path / "e" / "samples.html").read_text()
    assert "<figcaption>needles" in page
    scores = [json.loads(line) for line in (tmp_path / "e" / "scores.jsonl").read_text().splitlines()]
    assert {"needles", "ruler", "repetition"} <= {row["task"] for row in scores}
    assert cli.main(["haystack", *words, "lengths=[1024]", f"out={tmp_path / 'beyond'}"]) == 2


def test_repetition_is_told_by_place():
    new = " ".join(str(n) for n in range(80))
    assert fresh(new, ()) == 1
    assert fresh_by_eighth(new + " and so" * 80)[-1] == 0
    assert fresh_by_eighth(new + " and so" * 80)[0] == 1
    assert fresh("short", ()) == 1
