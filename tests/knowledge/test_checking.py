"""Sentences held against one's own files."""

from __future__ import annotations

import json

import pytest

from herd import cli
from herd.knowledge.build import index_folder
from herd.knowledge.checking import check
from herd.knowledge.grounding import Library, fitting, grounded, question_of
from herd.knowledge.index import Index

TEXT = """# House

Who loses a key pays forty euros to the caretaker. The house was built in 1962 by Anna Berg in Lucerne.
Dogs may use the garden on weekdays. The roof was not repaired in the spring of that year.
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    (folder / "notes").mkdir()
    (folder / "notes/house.md").write_text(TEXT)
    index_folder(folder / "notes", folder / "index")
    return Index(folder / "index")


@pytest.mark.parametrize(
    ("sentence", "verdict", "differs"),
    [
        ("The house was built in 1962 by Anna Berg in Lucerne.", "supported", ()),
        ("The house was built in 1972 by Anna Berg in Lucerne.", "contradicted", ("number",)),
        ("The house was built in 1962 by Anna Frei in Lucerne.", "contradicted", ("name",)),
        ("The roof was repaired in the spring of that year.", "contradicted", ("negation",)),
        ("Dogs may not use the garden on weekdays.", "contradicted", ("negation",)),
        ("The house was built in 1962.", "supported", ()),
        ("The caretaker owns three bicycles and a boat.", "not found", ()),
        ("Zeppelins crossed the Atlantic in 1936.", "not found", ()),
    ],
)
def test_a_sentence_is_supported_contradicted_or_not_found(index, sentence, verdict, differs):
    (found,) = check(sentence, index)
    assert (found.verdict, found.differs) == (verdict, differs)
    assert (found.passage is None) == (verdict == "not found") and found.quote in (TEXT if found.passage else "")


def test_herd_check_prints_each_sentence_with_its_passage(index, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "answer.txt").write_text("The house was built in 1972 by Anna Berg in Lucerne. Pigs fly over Bern.")
    assert cli.main(["check", str(index.place), str(tmp_path / "answer.txt")]) in (0, None)
    printed = capsys.readouterr()
    assert "contradicted (number): The house was built in 1972" in printed.out
    assert "house.md · House · line 3" in printed.out and "1 contradicted, 1 not found" in printed.err
    cli.main(["check", str(index.place), "Dogs may use the garden on weekdays.", "json=true"])
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "supported"


def test_a_question_is_covered_by_the_passages_that_hold_its_rare_words(index):
    library = Library(index)
    assert library.find([{"role": "user", "content": "Who pays for a lost key?"}]).passages
    assert not library.find([{"role": "user", "content": "Which zeppelin crossed the Atlantic?"}]).passages
    assert not library.find([{"role": "user", "content": "???"}]).passages


def test_passages_go_before_the_last_question_which_a_short_one_shares_with_the_one_before(index):
    talk = [
        {"role": "user", "content": "Who built the house?"},
        {"role": "assistant", "content": "Anna Berg."},
        {"role": "user", "content": "And when?"},
    ]
    assert question_of(talk) == "Who built the house? And when?"
    hits = index.search("house built", 1)
    said = grounded(talk, hits)
    assert said[:2] == talk[:2] and said[2]["content"].endswith("Question: And when?")
    assert hits[0].text in said[2]["content"]


def test_passages_that_do_not_fit_are_left_out_but_the_best(index):
    (hit,) = index.search("house built", 1)
    assert fitting([hit, hit], 1, len) == [hit] and fitting([hit, hit], 10_000, len) == [hit, hit]
