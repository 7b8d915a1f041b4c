"""A model in training is judged on a schedule, and its report shows how it went."""

import json

import pytest

from herd import cli
from herd.errors import ConfigError
from herd.evals.watching import WatchSettings, watched_tasks
from herd.report import render
from tests.post.models import save_model
from tests.stages.test_pretrain import TEXT, corpus  # noqa: F401

SHAPE = "model.hidden_size=32 model.num_hidden_layers=2 model.intermediate_size=64 model.num_attention_heads=2"
BATCH = "batch.row_tokens=64 batch.tokens=256 batch.micro_tokens=128 optimizer.learning_rate=1e-2 tokens=2048"


WATCHED = {"right accuracy", "right right_nats", "right right_nats_per_character"}


def tasks(folder, shards):
    (folder / "rows.csv").write_text("question,a,b\ndef add(first,second,third\nreturn first +, second, nothing\n")
    prompt = 'data: rows.csv\nprompt: "{{ question }}"\n'
    (folder / "right.yaml").write_text('ask: choices\nchoices: ["{{ a }}", "{{ b }}"]\nanswer: A\n' + prompt)
    (folder / "text.yaml").write_text('ask: text\nanswer: "{{ a }}"\n' + prompt)
    (folder / "bits.yaml").write_text(f"ask: bits_per_byte\ndata: {shards}\n")
    return [folder / f"{name}.yaml" for name in ("right", "text", "bits")]


def test_right_answers_become_likelier_and_the_report_draws_it(corpus, tmp_path):  # noqa: F811
    names = ", ".join(map(str, tasks(tmp_path, corpus / "shards")))
    words = [f"shards={corpus / 'shards'}", f"tokenizer={corpus / 'tokenizer'}", f"out={tmp_path / 'run'}"]
    words += [*SHAPE.split(), *BATCH.split(), f"watch.tasks=[{names}]", "watch.steps=4", "compile=off", "dtype=fp32"]
    assert cli.main(["pretrain", *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8]
    assert set(rows[0]["figures"]) == {
        "right accuracy",
        "right right_nats",
        "right right_nats_per_character",
        "text bits_per_byte",
        "bits code bits_per_byte",
        "bits bits_per_byte",
    }
    for name in ("right right_nats", "text bits_per_byte", "bits code bits_per_byte"):
        assert rows[1]["figures"][name] < rows[0]["figures"][name]
    assert "Evaluated during training" in render(tmp_path / "run")


def test_preferences_a_teacher_and_rewards_are_watched_too(tmp_path):
    (tmp_path / "rows.csv").write_text("question,a,b\nWhat is open?,the mode,care\n")
    (tmp_path / "right.yaml").write_text(
        'ask: choices\nchoices: ["{{ a }}", "{{ b }}"]\nanswer: A\ndata: rows.csv\nprompt: "{{ question }}"\n'
    )
    pair = {"prompt": "What is open?", "chosen": "the mode", "rejected": "care"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 8)
    (tmp_path / "asked.jsonl").write_text((json.dumps({"prompt": "What is open?", "answer": "7"}) + "\n") * 4)
    for name in ("model", "teacher"):
        save_model(tmp_path / name, seed=len(name))
    asked, steps = [f"prompts={tmp_path / 'asked.jsonl'}", "answer_tokens=8"], ["steps=1", "prompts_per_step=2"]
    words = {
        "dpo": [f"pairs=[{tmp_path / 'pairs.jsonl'}]", "watched=0"],
        "distill": [*asked, *steps, f"teacher={tmp_path / 'teacher'}", "how=own_answers"],
        "rl": [*asked, *steps, "samples=2"],
    }
    for stage, own in words.items():
        own += [f"checkpoint={tmp_path / 'model'}", f"watch.tasks=[{tmp_path / 'right.yaml'}]", "batch.row_tokens=256"]
        assert cli.main([stage, *own, "compile=off", f"out={tmp_path / stage}"]) == 0
        rows = [json.loads(line) for line in (tmp_path / stage / "evaluations.jsonl").read_text().splitlines()]
        assert set(rows[-1]["figures"]) == WATCHED, stage
    assert cli.main(["reward", words["dpo"][0], "watch.tasks=[right.yaml]", f"out={tmp_path / 'reward'}"]) == 2


def test_what_cannot_be_watched_is_refused_by_name(tmp_path):
    (tmp_path / "free.yaml").write_text("ask: generate\ndata: rows.csv\nprompt: x\nanswer: y\n")
    with pytest.raises(ConfigError, match="free has `ask: generate`"):
        watched_tasks(WatchSettings(tasks=[tmp_path / "free.yaml"]))
    (tmp_path / "right.yaml").write_text("ask: choices\ndata: none.csv\nprompt: x\nchoices: [a, b]\nanswer: A\n")
    with pytest.raises(ConfigError, match=r"none\.csv is not there"):
        watched_tasks(WatchSettings(tasks=[tmp_path / "right.yaml"]))
