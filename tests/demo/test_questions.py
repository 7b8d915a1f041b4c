"""Questions: deterministic, disjoint in wording, and never about a held-out group in training."""

import json
import re
import string

import pytest

from herd.data.split import is_held_out
from herd.demo.facts import Fact
from herd.demo.questions import (
    EVAL_WORDINGS,
    PROMPT_WORDINGS,
    TRAIN_WORDINGS,
    UNKNOWN,
    invented_names,
    kinds_of,
    make_questions,
    ranked,
)
from herd.evals.answers import f1_scores

HOLDOUT = 0.2


@pytest.fixture(scope="module")
def facts():
    made = []
    for number in range(60):
        module = f"mod{number}"
        made.append(Fact(name=module, kind="module", module=module, group=module, summary=f"All about thing {number}."))
        for index, word in enumerate(("open", "close", "Reader")):
            made.append(
                Fact(
                    name=f"{module}.{word}",
                    kind="class" if word == "Reader" else "function",
                    module=module,
                    group=module,
                    summary=f"{word.title()} the thing {number} in way {index} with care.",
                    parameters=("path, mode='r'", "", None)[index],
                )
            )
    return ranked(made, {})


@pytest.fixture(scope="module")
def sets(facts):
    return make_questions(facts, holdout=HOLDOUT, max_facts=150, max_questions=80, wordings=4, subject="things")


def questions(rows):
    return [message["content"] for row in rows for message in row["messages"] if message["role"] == "user"]


def skeleton(wording):
    """A wording without its names and punctuation."""
    return re.sub(r"\W+", " ", re.sub(r"\{\w+\}", " ", wording)).lower().strip()


def test_wordings_of_training_sampling_and_evaluation_are_disjoint_even_without_punctuation():
    assert TRAIN_WORDINGS.keys() == EVAL_WORDINGS.keys()
    sets = [
        {skeleton(wording) for wordings in group.values() for wording in wordings}
        for group in (TRAIN_WORDINGS, PROMPT_WORDINGS, EVAL_WORDINGS)
    ]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    for group in (TRAIN_WORDINGS, PROMPT_WORDINGS, EVAL_WORDINGS):
        for wording in (wording for wordings in group.values() for wording in wordings):
            assert {name for _, name, _, _ in string.Formatter().parse(wording) if name} <= {"name", "module", "task"}


def test_no_question_of_the_evaluation_is_in_the_training_set(sets):
    trained = set(questions([*sets.train, *sets.prompts]))
    skeletons = {skeleton(re.sub(r"mod\d+(\.\w+)?|`|\(\)", "", text)) for text in trained}
    for rows in (sets.eval_trained, sets.eval_heldout, sets.eval_unknown):
        assert rows
        assert not trained & set(questions(rows))
        plain = {
            skeleton(re.sub(r"mod\d+(\.\w+)?", "", text))
            for text, row in zip(questions(rows), rows)
            if row["kind"] != "reverse"
        }
        assert not skeletons & plain


def test_held_out_groups_are_never_trained_on_and_always_asked_about(sets):
    for rows in (sets.train, sets.prompts, sets.eval_trained):
        assert not any(is_held_out(row["group"], HOLDOUT) for row in rows)
        for row in rows:
            for message in row["messages"]:
                assert not any(is_held_out(name, HOLDOUT) for name in re.findall(r"mod\d+", message["content"]))
    assert all(is_held_out(row["group"], HOLDOUT) for row in sets.eval_heldout)


def test_every_evaluated_trained_fact_is_in_the_training_set(sets):
    trained = {name for row in sets.train for name in row["name"].split()}
    assert {row["name"] for row in sets.eval_trained} <= trained


def test_prompts_for_sampling_repeat_no_training_question(sets):
    assert not set(questions(sets.prompts)) & set(questions(sets.train))
    assert {row["name"] for row in sets.prompts} <= {name for row in sets.train for name in row["name"].split()}


def test_rows_are_conversations_that_end_with_their_answer(sets):
    for row in [*sets.train, *sets.prompts, *sets.eval_trained, *sets.eval_heldout, *sets.eval_unknown]:
        assert {"messages", "source", "group", "name", "kind", "answer"} <= row.keys()
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert row["messages"][-1]["content"].endswith(row["answer"])
        if row["kind"] != "dialogue":
            assert f1_scores([row["messages"][-1]["content"]], [row]) == [1.0]
        assert len(row["answer"].split()) <= 40
    assert {row["kind"] for row in sets.train} >= {"summary", "signature", "module", "reverse", "dialogue", "unknown"}
    assert any(len(row["messages"]) >= 4 for row in sets.train)


def test_invented_names_are_refused_and_exist_nowhere(sets, facts):
    known = {fact.name for fact in facts}
    unknown = [row for row in sets.train if row["kind"] == "unknown"] + sets.eval_unknown
    assert unknown
    assert all(row["answer"] == UNKNOWN and row["name"] not in known for row in unknown)
    asked = {row["name"] for row in sets.eval_unknown}
    assert not asked & {row["name"] for row in sets.train if row["kind"] == "unknown"}
    words = [{row["name"].rpartition(".")[2] for row in rows} for rows in (sets.unknown, sets.eval_unknown)]
    assert not words[0] & words[1]  # made of other syllables
    assert list(invented_names(facts, known, count=9)) == list(invented_names(facts, known, count=9))


def test_questions_are_the_same_every_time_and_whatever_the_order_of_the_facts(facts, sets):
    options = {"holdout": HOLDOUT, "max_facts": 150, "max_questions": 80, "wordings": 4, "subject": "things"}
    again = make_questions(ranked(facts[::-1], {}), **options)
    assert json.dumps(vars(again)) == json.dumps(vars(sets))


def test_well_known_names_come_first_and_equal_answers_once():
    def fact(name, summary, kind="function"):
        return Fact(name=name, kind=kind, module=name.split(".")[0], group="", summary=summary, parameters="")

    found = ranked(
        [
            fact("rare.f", "Do one thing very well."),
            fact("os.f", "Do another thing very well."),
            fact("copy.f", "Do another thing, very well."),
            fact("os.f", "Do yonder thing very well."),
        ],
        {"os": 100},
    )
    assert [item.name for item in found] == ["os.f", "rare.f"]


def test_a_signature_is_asked_for_only_where_it_is_known_and_short():
    def kinds(parameters):
        return kinds_of(Fact(name="m.f", kind="function", module="m", group="m", summary="S.", parameters=parameters))

    assert "signature" in kinds("a, b")
    assert "signature" in kinds("")
    assert "signature" not in kinds(None)
    assert "signature" not in kinds("a" * 200)
