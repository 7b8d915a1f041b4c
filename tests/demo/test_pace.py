"""The demo's time: every step is sized to its share of what is left, and what was chosen is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd.data.rows import write_rows
from herd.demo.pace import SIZED, Pace
from herd.run import FORMAT
from herd.stages import find
from herd.stages.demo import DemoSettings, read_story
from herd.stages.pretrain import PretrainSettings
from herd.stages.reject import RejectSettings
from herd.stages.sft import SftSettings
from herd.story import plan
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer

STEPS = {"pages": "demo pages", "pretrain": "pretrain", "anneal": "pretrain", "sft": "sft", "reject": "reject"}
STEPS |= {"quantize": "quantize"}
PLANNED = {"pages": 10, "pretrain": 100, "anneal": 50, "sft": 40, "reject": 40, "quantize": 10}


def measured(folder: Path, rate: float = 1000, answers: float = 10) -> None:
    rates = {"256": rate, "1024": rate}
    choices = {"threads": 1, "model": {}, "tokens_per_second": rates, "answers_per_second": answers, "steps": {}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "choices.json").write_text(json.dumps(choices))


def took(folder: Path, name: str, seconds: float) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    manifest = {"format": FORMAT, "state": "finished", "seconds": seconds, "figures": {}}
    (folder / name / "run.json").write_text(json.dumps(manifest))


def pace(folder: Path, seconds: float = 250, tokens: int | None = None) -> Pace:
    return Pace(folder, STEPS, PLANNED, seconds, tokens)


def pretraining(folder: Path) -> PretrainSettings:
    return PretrainSettings(out=folder / "out", shards=folder / "pack", tokenizer=folder / "tokenizer")


def test_a_step_gets_its_planned_seconds_and_less_where_others_were_late(tmp_path):
    took(tmp_path, "pages", 10)
    assert pace(tmp_path).seconds_for("pretrain") == pytest.approx(100)
    took(tmp_path, "pages", 30)  # and what cannot be made smaller will be as late: 30 more for the 10 of quantizing
    assert pace(tmp_path).seconds_for("pretrain") == pytest.approx(100 * (250 - 60) / 230)
    assert pace(tmp_path, seconds=135).seconds_for("pretrain") == pytest.approx(100 * (135 - 60) / 230)
    took(tmp_path, "pages", 500)
    assert pace(tmp_path).seconds_for("pretrain") == pytest.approx(25)  # late as it is, something is learned


@pytest.mark.parametrize("slowness", [0.7, 1.0, 2.0, 3.0])
def test_the_whole_ends_in_its_time_however_long_the_steps_take_that_cannot_be_made_smaller(tmp_path, slowness):
    story = read_story(DemoSettings(path=tmp_path))
    commands = {act.name: act.step.run for act in plan(story, find) if act.step.run}
    spent = 0.0
    for name, planned in story.seconds.items():
        paces = Pace(tmp_path, commands, story.seconds, 580, None)
        seconds = paces.seconds_for(name) if commands[name] in SIZED else slowness * planned
        took(tmp_path, name, seconds)
        spent += seconds
    assert spent == pytest.approx(580, rel=0.02)


def test_a_slower_machine_trains_on_less(tmp_path):
    for rate in (1000, 400):
        measured(tmp_path / str(rate), rate)
        took(tmp_path / str(rate), "pages", 10)
        settings = pretraining(tmp_path)
        assert pace(tmp_path / str(rate)).settings_for("pretrain", settings) == {"tokens": 100 * rate}


def test_what_was_chosen_is_kept_and_later_steps_learn_from_what_earlier_ones_took(tmp_path):
    measured(tmp_path)
    took(tmp_path, "pages", 10)
    given = pretraining(tmp_path)
    assert pace(tmp_path).settings_for("pretrain", given) == {"tokens": 100_000}
    took(tmp_path, "pages", 30)
    assert pace(tmp_path).settings_for("pretrain", given) == {"tokens": 100_000}
    took(tmp_path, "pages", 10)
    took(tmp_path, "pretrain", 150)  # half as slow again as was measured
    left = (250 - 10 - 150 - 10) / 130
    assert pace(tmp_path).settings_for("anneal", given)["tokens"] == pytest.approx(50 * left * 1000 / 1.5, rel=0.01)


def test_fine_tuning_and_sampling_are_cut_to_their_time_but_never_above_the_recipe(tmp_path):
    row = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A number."}]}
    write_rows(tmp_path / "rows.jsonl", [row] * 400)
    save_tokenizer(Tokenizer.train(["What is it? A number."], 520), tmp_path / "tokenizer")
    sft = SftSettings(out=tmp_path / "o", checkpoint=tmp_path, conversations=[tmp_path / "rows.jsonl"], epochs=3)
    reject = RejectSettings(
        out=tmp_path / "o", checkpoint=tmp_path, reward=tmp_path, prompts=tmp_path / "rows.jsonl", samples=4
    )
    measured(tmp_path, rate=1e6, answers=1e6)
    assert pace(tmp_path).settings_for("sft", sft) == {"epochs": 3}
    assert pace(tmp_path).settings_for("reject", reject) == {"max_prompts": 512}
    for name, seconds in {"pages": 10, "pretrain": 100, "anneal": 50}.items():
        took(tmp_path, name, seconds)
    measured(tmp_path, rate=300, answers=10)
    assert 0 < pace(tmp_path).settings_for("sft", sft)["epochs"] < 3
    took(tmp_path, "sft", 40)
    assert pace(tmp_path).settings_for("reject", reject) == {"max_prompts": 100}


def test_fixed_tokens_leave_everything_else_as_the_recipes_say(tmp_path):
    assert pace(tmp_path, tokens=60_000).settings_for("pretrain", pretraining(tmp_path)) == {"tokens": 40_000}
    assert pace(tmp_path, tokens=60_000).settings_for("quantize", None) == {}
    assert json.loads((tmp_path / "choices.json").read_text())["model"] == {}
