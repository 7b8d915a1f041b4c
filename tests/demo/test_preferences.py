"""Preference pairs: the reference wins, hard negatives lose, strengths follow the gap."""

import json

import pytest

from herd.demo.preferences import STRENGTHS, make_pairs, pairs_of, spoil_signature, strength
from herd.demo.questions import spoken
from herd.demo.wordings import UNKNOWN
from herd.evals.answers import f1_scores
from tests.post.models import question_sets


def question(answer="Join two paths into one.", kind="summary", name="os.path.join"):
    said = spoken(name, kind, answer)
    messages = [{"role": "user", "content": f"What does {name} do?"}, {"role": "assistant", "content": said}]
    return {"messages": messages, "answer": answer, "kind": kind, "name": name, "group": "os"}


def by_kind(pairs):
    return {pair["kind"]: pair for pair in pairs}


def test_the_reference_is_preferred_to_another_names_docstring_and_to_a_bad_sample():
    pairs = by_kind(pairs_of(question(), ["Make a new folder.", "Join two paths into one."], "Split a path in two."))
    right = "os.path.join: Join two paths into one."
    assert pairs["other_answer"]["chosen"] == pairs["own_sample"]["chosen"] == right
    assert pairs["other_answer"]["rejected"] == "os.path.join: Split a path in two."
    assert pairs["own_sample"]["rejected"] == "Make a new folder."
    assert pairs["own_sample"]["prompt"] == [{"role": "user", "content": "What does os.path.join do?"}]


def test_a_right_sample_is_never_rejected():
    pairs = by_kind(pairs_of(question(), ["join two paths into one", "Join two paths into one."], ""))
    assert "own_sample" not in pairs
    assert "edited" not in pairs


def test_two_samples_of_clearly_different_worth_give_edited_over_chosen_over_rejected():
    pair = by_kind(pairs_of(question(), ["Join two strings into one.", "Delete a folder."], ""))["edited"]
    values = f1_scores([pair[name] for name in ("edited", "chosen", "rejected")], [question()] * 3)
    assert values[0] == 1 > values[1] > values[2]


def test_an_invented_name_prefers_the_refusal_to_an_answer():
    pairs = pairs_of(question(UNKNOWN, "unknown", "os.florble"), ["Join two paths into one."], "")
    assert [(pair["kind"], pair["chosen"]) for pair in pairs] == [("refusal", UNKNOWN)]
    assert pairs_of(question(UNKNOWN, "unknown", "os.florble"), [UNKNOWN]) == []


def test_the_answer_to_another_question_about_the_same_name_is_rejected():
    pair = by_kind(pairs_of(question(), [], swapped="os.path.join(a, *p)"))["wrong_kind"]
    assert (pair["chosen"], pair["rejected"]) == ("os.path.join: Join two paths into one.", "os.path.join(a, *p)")


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(1.0, "significantly_better"), (0.4, "better"), (0.2, "slightly_better"), (0.0, "marginally_better")],
)
def test_strength_follows_the_difference_in_f1(gap, expected):
    assert strength(gap) == expected
    assert expected in STRENGTHS


@pytest.mark.parametrize("signature", ["(a, *p)", "(x)", "(path, mode='r', *, flags=(1, 2))", "(s='a,b', /, **kw)"])
def test_a_spoiled_signature_differs_and_is_still_in_brackets(signature):
    for salt in "abcdefgh":
        spoiled = spoil_signature(signature, salt)
        assert spoiled != signature
        assert spoiled.startswith("(")
        assert spoiled.endswith(")")
        assert spoiled.count("(") == spoiled.count(")")


def test_what_is_no_signature_is_not_spoiled():
    assert spoil_signature("It takes no arguments.", "x") is None
    assert spoil_signature("()", "x") is None


def test_pairs_are_deterministic_and_their_responses_always_differ():
    sets = question_sets()
    samples = [["Open the thing with care.", ""] for _ in sets.prompts]
    pairs = make_pairs(sets.prompts, samples, sets.prompts)
    assert json.dumps(pairs) == json.dumps(make_pairs(sets.prompts, samples, sets.prompts))
    assert {"other_answer", "wrong_signature", "own_sample", "wrong_kind"} <= {pair["kind"] for pair in pairs}
    for pair in pairs:
        responses = [pair["chosen"], pair["rejected"], *([pair["edited"]] if "edited" in pair else [])]
        assert len(set(responses)) == len(responses)
        assert pair["strength"] in STRENGTHS
        assert pair["prompt"][-1]["role"] == "user"
