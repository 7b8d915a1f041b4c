"""What a row's right answer is, and which rows have none."""

import json

import pytest

from herd.errors import DataError
from herd.evals.asking import graded
from herd.evals.task import items_of, load_task


def task_of(folder, text, rows, name="rows.jsonl"):
    (folder / name).write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(f"data: {name}\n{text}")
    return load_task(folder / "own.yaml", None)


PICK = "ask: choices\nprompt: '{{ q }}'\nchoices: c\nanswer: '{{ a }}'\n"


@pytest.mark.parametrize(
    ("choices", "answer", "places"),
    [
        (["1", "0", "3", "2"], 0, {0}),  # a number is a place, whatever the choices say
        (["1", "0", "3", "2"], "0", {1}),  # a text is a text first
        ([4, 2, 8], 2, {1}),  # numbers among numbers are themselves
        (["x", "y"], "b", {1}),
        (["x", "y", "x"], "A", {0, 2}),  # what stands there twice is right twice
        (["False", "True"], True, {1}),
    ],
)
def test_a_right_choice_is_told_by_place_text_or_letter(tmp_path, choices, answer, places):
    task = task_of(tmp_path, PICK, [{"q": "Which?", "c": choices, "a": answer}])
    assert items_of(task)[0].rights == places


@pytest.mark.parametrize(
    ("text", "rows", "told"),
    [
        (PICK, [{"q": "Which?", "c": ["x"], "a": "x"}], "one choice alone"),
        (PICK, [{"q": "Which?", "c": ["x", "y"], "a": "ABC"}] * 3, "'ABC' is none of its 2 choices; and 2 more"),
        (PICK, [{"q": "Which?", "c": ["x", "y"], "a": ""}], "'' is none of"),
        ("ask: generate\nprompt: '{{ q }}'\n", [{"q": "Which?", "target": "x"}], "no right answer; give `answer:`"),
        ("ask: generate\nprompt: '{{ q }}'\nanswer: '{{ a }}'\n", "q,a\r\nWhich?,\r\n", "question 1.*no right answer"),
        ("ask: generate\nprompt: x\nanswer: '{{ a }}'\nscorer: number\n", [{"a": "seven"}], "looks for a number"),
        ("ask: generate\nprompt: x\nanswer: '{{ a }}'\nscorer: letter\n", [{"a": "ABC"}], "one capital letter"),
        (PICK, [{"q": None, "c": ["x", "y"], "a": "x"}], "question 1.*is null"),
        (PICK, [{"q": "Which?", "c": ["x", "y"], "a": None}], "question 1.*right answer.*is null"),
        (PICK, [{"q": "Which?", "c": "['x', 'y']", "a": "x"}], "no list but the text"),
        (
            "ask: generate\nprompt: x\nanswer: '{{ a }}'\nwhere: b > 1\n",
            [{"a": "x", "b": "2"}],
            "row 1 of own: 'b > 1'",
        ),
        ("ask: generate\nprompt: x\nanswer: '{{ a|map(attribute=\"text\")|list }}'\n", [{"a": ["x"]}], "no attribute"),
        ("ask: generate\nprompt: x\nderive: {b: c ~ 1}\nanswer: x\n", [{"a": "x"}], "row 1: derive: b: .*'c' is"),
    ],
)
def test_a_row_without_an_answer_that_could_be_right_is_refused(tmp_path, text, rows, told):
    with pytest.raises(DataError, match=told):
        items_of(task_of(tmp_path, text, rows, "rows.csv" if isinstance(rows, str) else "rows.jsonl"))


@pytest.mark.parametrize("written", ['["x, y", "z"]', "['x, y', 'z']"])
def test_lists_that_a_table_has_written_out_are_lists_again(tmp_path, written):
    cell = '"' + written.replace('"', '""') + '"'
    task = task_of(tmp_path, PICK, f"q,c,a\r\n[1] Which?,{cell},1\r\n[2],{cell},0\r\n", "rows.csv")
    items = items_of(task)
    assert [item.choices for item in items] == [("x, y", "z")] * 2
    assert [item.text for item in items] == ["[1] Which?", "[2]"], "one cell of brackets makes no column of lists"
    assert [item.best for item in items] == [1, 0]


def test_letters_are_the_same_in_either_case_and_in_brackets(tmp_path):
    task = task_of(tmp_path, "ask: generate\nprompt: x\nanswer: '{{ a }}'\nscorer: letter\n", [{"a": "(b)"}])
    told = graded(task, items_of(task) * 2, ["B.", "A"])
    assert [one["scores"]["letter"] for one in told] == [1.0, 0.0]


def test_of_a_benchmark_of_several_files_those_that_are_absent_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    task = task_of(tmp_path, "ask: generate\nprompt: x\nanswer: '{{ file }}'\n", [{"a": 1}], "one.jsonl")
    (tmp_path / "own.yaml").write_text(
        (tmp_path / "own.yaml").read_text().replace("one.jsonl", "'{one,two,three}.jsonl'")
    )
    task = load_task(tmp_path / "own.yaml", None)
    assert items_of(task)[0].right == ("one",)
    assert "2 of its 3 parts are not there: two.jsonl, three.jsonl" in "".join(capsys.readouterr())
