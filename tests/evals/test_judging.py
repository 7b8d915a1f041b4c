"""Pairwise judging: both orders, the judge's faults, strengths with intervals."""

import json
import random

import pytest

from herd import cli
from herd.evals.judged_page import judged_page
from herd.evals.judging import bradley_terry, duels_of, judged, pair_figures, verdict
from tests.post.models import save_model


def samples(count=40):
    """Answers of three models; strong's holds `right`, and long's is longer than the others'."""
    rows = []
    for item in range(count):
        for model, answer in (("strong", f"right {item}"), ("weak", f"wrong {item}"), ("long", f"wrong {item} " * 9)):
            rows.append({"task": "t", "item": item, "model": model, "question": f"q{item}", "answer": answer})
    return rows


def fair(prompts):
    found = []
    for prompt in prompts:
        a, b = ("right" in part for part in prompt.split("[Answer A]")[1].split("[Answer B]"))
        found.append("so [[A]]" if a and not b else "so [[B]]" if b and not a else "so [[C]]")
    return found


def test_a_fair_judge_finds_the_better_model_and_never_flips():
    rows = judged(duels_of(samples(), ["strong", "weak"]), fair)
    found = pair_figures(rows)
    assert found["win_rate"] == 1
    assert found["flip_rate"] == 0
    assert found["first_preferred"] == 0.5


def test_a_judge_that_takes_the_first_has_flipped_and_calls_all_draws():
    found = pair_figures(judged(duels_of(samples(), ["strong", "weak"]), lambda prompts: ["[[A]]"] * len(prompts)))
    assert (found["win_rate"], found["flip_rate"], found["first_preferred"]) == (0.5, 1, 1)
    assert 0.43 < found["low"] < 0.47 and 0.53 < found["high"] < 0.57  # of 40 draws one win may be hidden


def test_a_judge_that_likes_length_is_told_by_the_longer_answers_wins():
    def longer(prompts):
        parts = [prompt.split("[Answer A]")[1].split("[Answer B]") for prompt in prompts]
        return ["[[A]]" if len(a) > len(b.split("Say in")[0]) else "[[B]]" for a, b in parts]

    found = pair_figures(judged(duels_of(samples(), ["long", "weak"]), longer))
    assert found["longer_won"] == 1
    assert found["win_rate"] == 1
    assert found["win_rate_at_equal_length"] < found["win_rate"]


def test_strengths_are_in_order_and_their_intervals_hold_the_truth():
    draw = random.Random(0)
    rows = [
        {"item": item, "models": pair, "score": float(draw.random() < chance)}
        for item in range(200)
        for pair, chance in ((("a", "b"), 0.64), (("b", "c"), 0.64), (("a", "c"), 0.76))  # 100 points apart
    ]
    found = bradley_terry(rows, ["a", "b", "c"])
    assert [one["model"] for one in found] == ["a", "b", "c"]
    for one, truth in zip(found, (100, 0, -100)):
        assert one["low"] < truth < one["high"]
        assert one["high"] - one["low"] < 120


def test_what_cannot_be_read_is_counted_and_left_out():
    assert verdict("[[A]] no, [[B]]") == "B"
    assert verdict("A is better") == ""
    found = pair_figures(judged(duels_of(samples(2), ["strong", "weak"]), lambda prompts: ["hm"] * len(prompts)))
    assert found == {"n": 0, "unreadable": 2}


def test_answers_are_held_together_by_their_question_and_lonely_ones_are_counted(capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    rows = [row for row in samples(4) if row["model"] == "strong"]
    other = [row | {"model": "weak", "item": row["item"] - 1} for row in rows[1:]]  # of a smaller limit
    found = duels_of([*rows, *other, other[0]], ["strong", "weak"])
    assert [duel.question for duel in found] == ["q1", "q2", "q3"]
    told = "".join(capsys.readouterr())
    assert "1 of 4 questions have the answer of one model only" in told
    assert "1 further answers" in told


def test_the_page_tells_strengths_the_judges_faults_and_every_verdict():
    def moody(prompts):  # fair, but for one question in four, where it takes the first, and one verdict that is none
        said = fair(prompts)
        return ["[[A]]" if place % 8 < 2 else one for place, one in enumerate(said[:-1])] + ["<hm>"]

    models = ["strong", "weak", "long"]
    rows = judged(duels_of(samples(), models), moody)
    pairs = [
        {"model": a, "against": b} | pair_figures([r for r in rows if r["models"] == (a, b)])
        for a, b in (models[:2], models[1:])
    ]
    text = judged_page("a <judge>", rows, pairs, bradley_terry(rows, models))
    flips = sum(bool(row["flipped"]) for row in rows)
    assert f"order in {flips} of {len(rows) - 1} " in text
    assert "of 1 a verdict could not be read" in text
    assert "a &lt;judge&gt;" in text and "<judge>" not in text
    assert text.count("class='sample wrong split'") == flips
    assert text.count("<circle") == 3
    assert "&lt;hm&gt;" in text


def test_rows_that_are_no_answers_are_refused_by_name(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"task": "t", "item": 0, "model": "a", "question": "q"}) + "\n")
    words = ["judge", str(tmp_path / "rows.jsonl"), f"judge.checkpoint={tmp_path}", f"out={tmp_path / 'j'}"]
    assert cli.main(words) == 2
    assert "row 1: has no answer" in capsys.readouterr().err


def test_a_local_judge_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in samples(2)))
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{{ a }} {{ b }}")
    words = [f"path=[{file}]", f"judge.checkpoint={save_model(tmp_path / 'm')}", f"prompt={prompt}"]
    status = cli.main(["judge", *words, "models=[strong, weak]", f"out={tmp_path / 'j'}"])
    assert status == 2, "noise holds no verdict"
    assert "[[A]]" in capsys.readouterr().err
    assert cli.main(["judge", *words, "models=[none]", f"out={tmp_path / 'k'}"]) == 2


@pytest.mark.parametrize("words", [[], ["judge.endpoint=nowhere"]])
def test_a_judge_must_be_named(words, tmp_path):
    assert cli.main(["judge", f"path=[{tmp_path}]", *words, f"out={tmp_path / 'j'}"]) == 2
