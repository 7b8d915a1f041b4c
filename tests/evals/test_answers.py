"""Rows of anybody with a question, and token F1."""

import numpy as np
import pytest

from herd.errors import DataError
from herd.evals import answers


def question(name, text, answer, kind="summary"):
    return {"messages": [{"role": "user", "content": text}], "name": name, "kind": kind, "answer": answer, "group": ""}


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "cat sat", 1.0),  # articles do not count
        ("The cat, sat!", "cat sat", 1.0),  # nor do case and punctuation
        ("cat", "cat sat on mat", 2 * 1.0 * 0.25 / 1.25),
        ("cat cat", "cat sat", 0.5),  # a word counts as often as it stands in both
        ("os.path.join", "join", 2 * (1 / 3) / (1 + 1 / 3)),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),  # both are empty without articles
    ],
)
def test_token_f1_is_what_one_computes_by_hand(prediction, reference, expected):
    assert answers.token_f1(prediction, reference) == pytest.approx(expected)


def test_token_f1_equals_squads_script_on_plain_words():
    """The published definition, written out again over words without any punctuation."""
    words = ["return", "the", "list", "of", "names", "a", "file", "open"]
    generator = np.random.default_rng(0)
    for _ in range(200):
        left, right = (list(generator.choice(words, size=generator.integers(1, 7))) for _ in range(2))
        a, b = ([word for word in side if word not in ("a", "an", "the")] for side in (left, right))
        shared = sum(min(a.count(word), b.count(word)) for word in set(a))
        if not a or not b:
            expected = float(a == b)
        elif shared == 0:
            expected = 0.0
        else:
            precision, recall = shared / len(a), shared / len(b)
            expected = 2 * precision * recall / (precision + recall)
        assert answers.token_f1(" ".join(left), " ".join(right)) == pytest.approx(expected)


def test_a_prompt_is_the_conversation_up_to_the_question():
    row = {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "first"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "second"},
        ]
    }
    assert [message["content"] for message in answers.prompt_of(row)] == ["one", "first", "two"]
    assert answers.question_text(row) == "two"


def test_a_name_that_an_answer_begins_with_earns_nothing():
    row = question("os.path.join", "What does os.path.join do?", "Join two paths.")
    said = [
        "os.path.join: Join two paths.",
        "Join two paths.",
        "os.path.join: Delete all.",
        "os.path.split: Join two paths.",
    ]
    scores = answers.f1_scores(said, [row] * 4)
    assert scores[:3] == [1.0, 1.0, 0.0]
    assert scores[3] < 1  # another name is part of a wrong answer
    assert answers.scored_part("os.path.join(a, *p)", row) == "(a, *p)"
    wanted = question("len", "Which name counts?", "len", kind="reverse")
    assert answers.f1_scores(["len", "max"], [wanted] * 2) == [1.0, 0.0]  # here the name is what is asked for


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"prompt": "Why?"},
        {"prompt": [{"role": "user", "content": "Why?"}]},
    ],
)
def test_a_plain_prompt_without_anything_else_is_a_question(row):
    assert answers.prompt_of(row) == [{"role": "user", "content": "Why?"}]
    assert answers.question_text(row) == "Why?"
    assert answers.reference_of(row) is None
    assert answers.scored_part(" Because. ", row) == "Because."


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"},
                           {"from": "gpt", "value": "So."}]},
        {"system": "Be brief.", "instruction": "Why?", "input": "", "output": "So."},
        {"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
    ],
)  # fmt: skip
def test_a_question_is_read_in_the_shapes_that_training_reads(row):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert answers.prompt_of(row) == asked
    assert answers.reference_of(row) == "So."


def test_the_last_message_of_the_assistant_is_the_reference_where_none_is_given():
    said = [{"role": "user", "content": "What is tar?"}, {"role": "assistant", "content": "tar: An archive."}]
    assert answers.f1_scores(["An archive."], [{"messages": said}]) == [pytest.approx(2 / 3)]
    assert answers.f1_scores(["tar: An archive."], [{"messages": said, "name": "tar"}]) == [1.0]


@pytest.mark.parametrize(
    "row", [{"text": "x"}, {"messages": [1]}, {"messages": [{"role": "assistant", "content": "x"}]}]
)
def test_a_row_that_asks_nothing_is_refused_with_what_it_has(row):
    with pytest.raises(DataError, match="no prompt"):
        answers.prompt_of(row)
