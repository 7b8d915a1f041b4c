"""Scorers against answers that people and models write."""

import pytest

from herd.evals.asking import graded
from herd.evals.calls import calls_of, right_calls
from herd.evals.graders import code_of
from herd.evals.mathematics import same_value
from herd.evals.rows import rows_of
from herd.evals.scorers import SCORERS
from herd.evals.task import Task, items_of

AREA = {"name": "geo.area", "parameters": {"properties": {"base": {"type": "integer"}}, "required": ["base"]}}
WANTED = [{"geo.area": {"base": [10], "unit": ["cm", ""]}}]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"so it is \boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\dfrac{3\sqrt{3}}{2}}", r"\frac{3\sqrt{3}}{2}"),
        ("The answer is $(3, 4]$.", "(3,4]"),
        (r"x = 12", "12"),
        (r"\boxed{2x+3}", "3 + 2x"),
        (r"\boxed{1,200\text{ dollars}}", "1200"),
        ("The answer is: 45^\\circ", "45"),
        (r"\boxed{\frac12}", r"\frac{1}{2}"),
        (r"\boxed{\left(-2,1\right)}", "(-2, 1)"),
    ],
)
def test_the_same_value_is_right_however_it_is_written(answer, reference):
    assert same_value(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\boxed{\frac{1}{3}}", "0.5"),
        ("(3,4)", "(3,4]"),
        (r"\boxed{2x+3}", "2y+3"),
        ("", "1"),
        (r"\boxed{__import__('os').system('x')}", "1"),
        ("9**9**9**9**9", "1"),
        ("(" * 5000, "1"),
    ],
)
def test_another_value_is_wrong_and_nothing_of_an_answer_is_run(answer, reference):
    assert not same_value(answer, reference)


@pytest.mark.parametrize(
    "answer",
    [
        "[geo.area(base=10, unit='cm')]",
        "geo.area(base=10)",
        "Here it is:\n```python\n[geo.area(base=10)]\n```",
        '{"name": "geo.area", "parameters": {"base": 10}}',
        'I call [{"function": {"name": "geo.area", "arguments": {"base": 10, "unit": "CM"}}}]',
        '<think>{a}</think>\n<tool_call>\n{"name": "geo.area", "arguments": {"base": 10}}\n</tool_call>',
    ],
)
def test_a_right_call_is_found_in_every_form(answer):
    assert right_calls(calls_of(answer), WANTED, [AREA])


@pytest.mark.parametrize(
    "answer",
    [
        "[geo.area(base=11)]",
        "[geo.area(base=10.0)]",  # an integer was asked for
        "[geo.area(base='10')]",
        "[geo.area(unit='cm')]",
        "[geo.area(base=10, colour='red')]",
        "[geo.area(base=10), geo.area(base=10)]",
        "[area(base=10)]",
        "I cannot.",
        "[" * 3000,
    ],
)
def test_a_wrong_call_is_wrong(answer):
    assert not right_calls(calls_of(answer), WANTED, [AREA])


def test_no_call_is_right_where_none_fits_and_any_where_some_does():
    assert right_calls(calls_of("No function fits."), [], [AREA])
    assert not right_calls(calls_of("[geo.area(base=1)]"), [], [AREA])
    assert right_calls(calls_of("[geo.area(base=1)]"), "some", [AREA])
    assert not right_calls(calls_of("No."), "some", [AREA])


def test_calls_in_tags_are_all_taken():
    answer = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}'
    assert calls_of(answer) == [("f", {"a": 1}), ("g", {})]


def test_calls_in_parallel_may_come_in_any_order():
    both = [{"f": {"a": [1]}}, {"f": {"a": [2]}}]
    assert right_calls(calls_of("[f(a=2), f(a=1)]"), both, [])
    assert not right_calls(calls_of("[f(a=2), f(a=2)]"), both, [])


def test_an_api_is_named_by_its_function_and_literal_arguments():
    right = ["torch.hub.load(repo_or_dir='a/b', model='slow')"]
    assert SCORERS["names_api"]("import torch\nm = torch.hub.load('a/b', 'slow', pretrained=True)", right) == 1
    assert SCORERS["names_api"]("m = torch.hub.load('a/b', 'fast')", right) == 0
    assert SCORERS["names_api"]("torch.hub.load(" * 50, right) == 0


def test_longest_common_subsequences_are_rouge_l():
    assert SCORERS["rouge_l"]("police killed the gunman", ["police kill the gunman"]) == pytest.approx(2 / 3)
    assert SCORERS["rouge_l"]("", ["word"]) == 0


@pytest.fixture
def doubling(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "Double.", "test": "assert f(2) == 4"}\n')
    return Task(
        ask="generate", data=tmp_path / "rows.jsonl", prompt="{{ q }}", answer="x",
        scorer="program", program="{{ answer }}", tests="{{ test }}", metric="pass@1",
    )  # fmt: skip


def test_programs_pass_their_tests_or_say_why_not(doubling):
    answers = [
        "```python\ndef f(x):\n    return 2 * x\n```",
        "def f(x):\n    return x + 1\n",
        "raise SystemExit(0)",
        "def f(x): return 2 * x",
    ]
    found = graded(doubling, items_of(doubling) * 4, answers)
    assert [one["scores"]["pass@1"] for one in found] == [1.0, 0.0, 0.0, 1.0]
    assert "AssertionError" in found[1]["why"]
    assert "left before" in found[2]["why"]
    assert code_of("no fence") == "no fence"


def test_instructions_are_checked_without_a_network(tmp_path):
    pytest.importorskip("lm_eval")
    pytest.importorskip("langdetect")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "Two", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"], '
        '"kwargs": [{}, {"relation": "at least", "num_sentences": 2}]}\n'
    )
    task = Task(ask="generate", data=tmp_path / "rows.jsonl", prompt="{{ prompt }}", scorer="ifeval")
    found = graded(task, items_of(task) * 3, ["One. Two.", "One, and two.", "Hello, you. And you."])
    assert [one["scores"]["prompt_strict"] for one in found] == [1.0, 0.0, 0.0]
    assert [one["scores"]["instruction_strict"] for one in found] == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]


def test_nested_rows_unfold_as_they_are_published(tmp_path):
    (tmp_path / "squad.json").write_text(
        '{"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"question": "1"}, {"question": "2"}]}]}]}'
    )
    found = list(rows_of(tmp_path / "squad.json", unfold=["data", "paragraphs", "qas"]))
    assert [(row["title"], row["context"], row["question"], row["place"]) for row in found] == [
        ("T", "C", "1", 0),
        ("T", "C", "2", 1),
    ]
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text('{"article": "A", "questions": ["x", "y"], "answers": ["B", "C"]}')
    found = list(rows_of(tmp_path / "*.txt", unfold=["questions|answers"]))
    assert [(row["file"], row["questions"], row["answers"]) for row in found][::3] == [("a", "x", "B"), ("b", "y", "C")]
