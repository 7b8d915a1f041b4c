"""Prompts that are made here: different ones, fit to be judged, and none that stands in a benchmark."""

import json
import re

import pytest

from herd.errors import ConfigError
from herd.evals.checks import checked
from herd.post.instructions import KINDS, instruction_rows, sum_rows
from herd.stages.rl.prompts import PromptSettings, run


def rows_in(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_prompts_are_different_and_every_check_of_them_can_be_judged():
    rows = instruction_rows(700, seed=1, most=3)
    assert len({row["prompt"] for row in rows}) == 700
    assert {name for row in rows for name in row["instruction_id_list"]} == set(KINDS)
    for row in rows:
        assert len(checked("Some answer.", row)) == len(row["kwargs"])
    assert rows == instruction_rows(700, seed=1, most=3) != instruction_rows(700, seed=2, most=3)


def test_sums_have_the_right_answer():
    for row in sum_rows(100, seed=2):
        assert eval(row["group"]) == int(row["answer"])
    with pytest.raises(ConfigError, match="raise `largest`"):
        sum_rows(100, largest=1)


def test_a_prompt_of_a_benchmark_is_left_out_and_held_out_topics_are_not_trained_on(tmp_path, capsys):
    rows = instruction_rows(120)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"questions": [{"q": f"  {rows[7]['prompt'].upper()}\n"}]}))
    run(PromptSettings(out=tmp_path / "made", count=120, benchmarks=(tmp_path / "bench.jsonl",)))
    trained, held_out = (rows_in(tmp_path / "made" / f"{name}.jsonl") for name in ("prompts", "held_out"))
    assert len(trained) + len(held_out) == 119 and rows[7] not in trained + held_out
    assert {row["group"] for row in trained}.isdisjoint(row["group"] for row in held_out)
    assert json.loads((tmp_path / "made/run.json").read_text())["figures"]["left_out"] == 1


def test_a_system_message_stands_before_every_prompt(tmp_path):
    run(PromptSettings(out=tmp_path, kind="sums", count=60, system="Answer with the number."))
    messages = rows_in(tmp_path / "prompts.jsonl")[0]["messages"]
    assert [one["role"] for one in messages] == ["system", "user"] and messages[0][
        "content"
    ] == "Answer with the number."


def test_held_out_prompts_can_be_worded_as_no_other(tmp_path):
    run(PromptSettings(out=tmp_path, count=600, most=1, new_wordings=True))
    trained, held_out = (rows_in(tmp_path / f"{name}.jsonl") for name in ("prompts", "held_out"))
    assert {row["group"] for row in trained}.isdisjoint(row["group"] for row in held_out)

    def said(rows):  # the prompts without topic and figures
        return {
            re.sub(r'\d+|".*"|letter .|\b(part|word)s?\b', "", one["prompt"]).replace(one["group"], "") for one in rows
        }

    def split(texts):
        return {text.split(".", 1)[0] for text in texts}, {re.split(r"[.?]", text, maxsplit=1)[-1] for text in texts}

    tasks, checks = zip(split(said(trained)), split(said(held_out)))
    assert tasks[0].isdisjoint(tasks[1]) and checks[0].isdisjoint(checks[1])
    assert {row["kind"] for row in trained} == {row["kind"] for row in held_out} == set(KINDS)
    with pytest.raises(ValueError, match="new_wordings is for instructions"):
        PromptSettings(out=tmp_path, kind="sums", new_wordings=True)
