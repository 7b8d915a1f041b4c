"""Summaries of texts longer than the window, and what the text says for them."""

from __future__ import annotations

import json

import pytest

from herd.errors import DataError
from herd.knowledge.summaries import central, parts_of, share_supported, summarized, supported
from herd.stages.summarize import SummarizeSettings, run

BOOK = "\n\n".join(
    f"In chapter {n} the key of house {n} is lost. Who loses a key pays {n} euros." for n in range(1, 60)
)


def words(text):
    return len(text.split())


def test_every_part_fits_and_nothing_is_lost():
    table = "x" * 5000
    parts = parts_of(f"{BOOK}\n\n{table}", len, 400)
    assert all(len(part) <= 404 for part in parts)
    assert "".join("".join(parts).split()) == "".join(f"{BOOK}{table}".split())
    assert parts_of("", words, 10) == [""]


def test_a_book_is_told_by_levels_until_one_summary_is_left():
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return "Who loses a key pays 7 euros."

    found = summarized(BOOK, ask, words, room=60, words=10)
    assert found.text == "Who loses a key pays 7 euros." and found.num_parts > 10
    assert found.levels > 1 and found.num_asked == len(asked) > found.num_parts
    assert asked[0].startswith("Summarise this part") and asked[-1].startswith("These are summaries")
    assert all(words(prompt) <= 60 + 60 for prompt in asked)


def test_a_model_that_never_shortens_comes_to_an_end():
    found = summarized(BOOK, lambda prompt: prompt + " more" * 200, words, room=80, words=10)
    assert words(found.text) <= 20 * found.num_parts


def test_sentences_of_a_summary_are_held_against_the_text():
    checked = supported("Who loses a key pays 7 euros. Dogs fly on Sundays. Who loses a key pays 77 euros.", BOOK)
    assert [one.verdict for one in checked] == ["supported", "not found", "contradicted"]
    assert share_supported(checked) == pytest.approx(1 / 3)


def test_without_a_model_the_texts_own_sentences_are_told(tmp_path, capsys):
    (tmp_path / "book.md").write_text(BOOK)
    (tmp_path / "short.txt").write_text("Who loses a key pays 3 euros.")
    run(SummarizeSettings(file=tmp_path / "book.md", words=30, json=True, reference=tmp_path / "short.txt"))
    found = json.loads(capsys.readouterr().out)
    assert found["supported"] == 1 and 0 < found["rouge_l"] < 1 and words(found["text"]) <= 30
    assert central("", 10) == ""
    (tmp_path / "empty.bin").write_bytes(b"\0\1")
    with pytest.raises(DataError, match=r"empty\.bin"):
        run(SummarizeSettings(file=tmp_path / "empty.bin"))
