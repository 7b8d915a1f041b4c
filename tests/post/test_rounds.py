"""Rounds: preferences from a model's own answers, and what each round changed."""

import json
from pathlib import Path

import pytest

from herd import cli
from herd.config import find_recipe
from herd.data.rows import write_rows
from herd.errors import DataError
from herd.evals.graders import GRADERS
from herd.evals.table import moved
from herd.evals.task import items_of, load_task
from herd.post.prefer import pair_of, strength
from herd.post.prompts import part_of
from herd.post.verify import gain_over_random, verified, verifier_of
from herd.stages import reject
from herd.stages.rl import prompts
from herd.stages.rounds import prefer, table
from tests.post.models import save_model

CHECKED = {
    "prompt": "Say it without commas.",
    "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    "kwargs": [{}, {}],
}
ASKED = {"prompt": "What does it do?", "answer": "It opens a file.", "group": "g", "name": "it"}


def test_verifiers_are_checks_where_rows_have_them_and_else_the_reference():
    assert verifier_of([CHECKED, CHECKED]) == "checks"
    assert verifier_of([ASKED]) == "answer"
    assert verifier_of([ASKED, {"prompt": "Why?"}]) is None
    assert verified("checks", CHECKED, ["so it is", "So, it is", ""]) == [1.0, 0.0, 0.0]
    assert verified("answer", ASKED, ["It opens a file.", "No."]) == [1.0, 0.0]


def test_the_best_answer_is_held_against_the_worst_and_near_ties_are_none():
    pair = pair_of(CHECKED, ["Bad, bad", "good", "Half"], [0.0, 1.0, 0.5], 0.3)
    assert (pair["chosen"], pair["rejected"], pair["strength"]) == ("good", "Bad, bad", "significantly_better")
    assert "edited" not in pair
    assert pair_of(CHECKED, ["a", "b"], [0.5, 0.75], 0.3) is None
    assert pair_of(CHECKED, ["same", ""], [1.0, 0.0], 0.3) is None
    assert pair_of(ASKED, ["It opens", "No"], [0.6, 0.0], 0.3)["edited"] == "It opens a file."
    assert [strength(gap) for gap in (0.7, 0.4, 0.2, 0.0)] == [
        "significantly_better",
        "better",
        "slightly_better",
        "marginally_better",
    ]


def test_parts_of_the_prompts_share_none_and_make_up_all():
    rows = [{"prompt": f"question {number}"} for number in range(60)]
    first, second = part_of(rows, 0.0, 0.4), part_of(rows, 0.4, 1.0)
    assert len(first) + len(second) == 60 and 10 < len(first) < 40
    assert not {row["prompt"] for row in first} & {row["prompt"] for row in second}


def test_a_choice_is_worth_what_it_gains_where_samples_differ():
    rows = [{"group": str(number)} for number in range(4)]
    gain, count = gain_over_random(rows, [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 0, 1, 0])
    assert (count, gain.value) == (3, 0.5)


def test_questions_are_counted_as_fixed_still_wrong_and_newly_broken():
    assert moved([1.0, 0.2, 0.0, 1.0], [1.0, 1.0, 0.9, 0.3]) == {
        "still_right": 1,
        "fixed": 1,
        "still_wrong": 1,
        "newly_broken": 1,
    }


def test_a_models_answers_become_pairs_and_earlier_rounds_go_before_them(tmp_path, capsys):
    save_model(tmp_path / "model")
    prompts = [
        {**ASKED, "prompt": f"What does thing {number} do?", "answer": "the open of in a to"} for number in range(8)
    ]
    write_rows(tmp_path / "prompts.jsonl", prompts)
    given = {"checkpoint": tmp_path / "model", "prompts": tmp_path / "prompts.jsonl", "answer_tokens": 12}
    first = prefer.run(prefer.PreferSettings(out=tmp_path / "one", min_gap=0.01, **given))
    figures = json.loads((first / "run.json").read_text())["figures"]
    assert figures["pairs"] + figures["near_ties"] + figures["alike"] == figures["prompts"] == 8
    assert figures["score_low"] <= figures["score"] <= figures["score_high"]
    answers = [json.loads(line) for line in (first / "answers.jsonl").read_text().splitlines()]
    assert all(len(row["answers"]) == len(row["scores"]) == 8 for row in answers)
    second = prefer.run(prefer.PreferSettings(out=tmp_path / "two", earlier=first, min_gap=0.01, seed=5, **given))
    both = (second / "all_pairs.jsonl").read_text()
    assert both == (first / "pairs.jsonl").read_text() + (second / "pairs.jsonl").read_text()
    with pytest.raises(DataError, match="no verifier fits"):
        write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Why?"}])
        prefer.run(prefer.PreferSettings(out=tmp_path / "three", **given))


def test_without_a_reward_model_the_verifier_keeps_the_first_right_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    save_model(tmp_path / "model")
    rows = [
        CHECKED | {"prompt": f"Say {number}.", "answers": answers}
        for number, answers in enumerate((["A, b", "so it is", "or so"], ["right", "right too"], ["No, no", "Never"]))
    ]
    write_rows(tmp_path / "answers.jsonl", [*rows, CHECKED | {"prompt": "Known?", "answers": ["yes"]}])
    write_rows(tmp_path / "bench.jsonl", [{"prompt": "known?"}])
    given = {"checkpoint": tmp_path / "model", "prompts": tmp_path / "answers.jsonl", "keep": 1.0}
    given |= {"benchmarks": (tmp_path / "bench.jsonl",)}
    for only, texts in ((False, ["so it is", "right"]), (True, ["so it is"])):
        out = reject.run(reject.RejectSettings(out=tmp_path / f"out-{only}", only_differing=only, **given))
        found = [json.loads(line)["messages"][-1]["content"] for line in (out / "conversations.jsonl").open()]
        assert found == texts
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert figures["right_of_best"] == 0.6667 and figures["all_right"] == 0.3333
    assert "1 of 4 prompts stand in bench.jsonl" in capsys.readouterr().err
    with pytest.raises(DataError, match="no answer is left"):
        write_rows(tmp_path / "answers.jsonl", rows[2:])
        reject.run(reject.RejectSettings(out=tmp_path / "none", **given))
    with pytest.raises(DataError, match="no verifier fits"):
        write_rows(tmp_path / "answers.jsonl", [{"prompt": "Why?"}])
        reject.run(reject.RejectSettings(out=tmp_path / "no", **given))


def test_a_round_that_does_not_gain_keeps_the_best_before_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    story = tmp_path / "story"
    for number, gain in ((1, 0.1), (2, -0.05)):
        folder = story / f"turn-{number}-evaluate"
        folder.mkdir(parents=True)
        moves = {"still_right": 5, "fixed": 2, "still_wrong": 3, "newly_broken": 1}
        figures = {"gain": gain, "gain_low": gain - 0.01, "gain_high": gain + 0.01} | moves
        record = {"state": "finished", "stage": "evaluate", "figures": figures, "outputs": {}, "format": 1}
        (folder / "run.json").write_text(json.dumps(record))
        models = {"model before": {"path": "a"}, "model after": {"path": f"best-{number}"}}
        (folder / "inputs.json").write_text(json.dumps(models))
    done = table.run(table.TableSettings(out=tmp_path / "table", story=story, start=tmp_path / "start"))
    rows = json.loads((done / "rounds.json").read_text())
    assert [(row["says"], row["kept"], row["best"]) for row in rows] == [
        ("better", True, "best-1"),
        ("worse", False, "best-1"),
    ]
    assert "| 2 | -0.050 (-0.060 to -0.040) | worse | 5 | 2 | 3 | 1 | no |" in (done / "rounds.md").read_text()
    assert "the best: best-1" in capsys.readouterr().err
    with pytest.raises(DataError, match="no finished turn-N-other"):
        table.run(table.TableSettings(out=tmp_path / "no", story=story, evaluation="other", start=tmp_path / "start"))


def test_the_shipped_task_asks_the_held_out_prompts_that_are_made(tmp_path):
    made = prompts.run(prompts.PromptSettings(out=tmp_path / "prompts", count=60))
    task = load_task(find_recipe(Path("rounds/evals/instructions.yaml")), tmp_path)
    items = items_of(task)
    assert len(items) == sum(1 for _ in (made / "held_out.jsonl").open())
    assert GRADERS[task.scorer](task, items[:1], [""])[0]["checks"] == 0.0


def test_the_shipped_rounds_are_planned_with_all_their_settings(tmp_path, capsys):
    for name in ("model", "prompts.jsonl"):
        (tmp_path / name).touch()
    values = [f"values.base={tmp_path / 'model'}", f"values.start={tmp_path / 'model'}"]
    words = ["recipes/rounds/story.yaml", f"out={tmp_path / 'rounds'}", *values, "dry_run=true"]
    assert cli.main(["story", *words]) == 0
    (tmp_path / "pages.jsonl").touch()
    values = [f"values.{name}={tmp_path / file}" for name, file in (("model", "model"), ("text", "pages.jsonl"))]
    words = ["recipes/rounds/verified.yaml", f"out={tmp_path / 'verified'}", *values, "dry_run=true"]
    assert cli.main(["story", *words]) == 0
