"""`herd rl`: it learns what the reward asks for, says how far engine and trainer are apart, and resumes bit for bit."""

import json

import pytest

from herd.errors import ConfigError, DataError
from herd.formats.checkpoint import load
from herd.run import read_manifest, read_metrics
from herd.stages import rl
from herd.train import trainer
from tests.rollout.models import all_same, prepared, reward_file, settings

FIRST_BYTE = "def reward(row, answer):\n    return float(answer[:1].isascii() and answer[:1].islower())\n"


def learned(folder, *words, out="run"):
    file = reward_file(folder, FIRST_BYTE)
    return rl.run(settings(folder, f"reward={file}", "cut_is_wrong=false", *words, out=out))


def test_the_reward_rises_and_engine_and_trainer_agree_on_every_token(tmp_path):
    run = learned(prepared(tmp_path), "steps=25", "prompts_per_step=4", "samples=8")
    rows = read_metrics(run)
    first, last = (sum(row["reward"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.3
    assert max(row["max_engine_gap"] for row in rows) < 1e-3
    assert all(row["clipped"] == 0 for row in rows)  # one step on what was just drawn: nothing to clip
    assert len(list((run / "rollouts").iterdir())) == 25
    assert read_manifest(run)["figures"]["right"] > first


@pytest.mark.parametrize("words", [["algorithm=rloo"], ["updates=2", "kl=0.1"], ["normalise=answer", "scale=false"]])
def test_other_ways_of_weighing_answers_train_too(tmp_path, words):
    rows = read_metrics(learned(prepared(tmp_path), *words))
    assert len(rows) == 4 and max(row.get("max_engine_gap", 0) for row in rows) < 1e-3
    assert [("kl" in row, "reward" in row) for row in rows[:2]] == [
        ("kl=0.1" in words, True), ("kl=0.1" in words, "updates=2" not in words)
    ]  # fmt: skip


def test_a_killed_run_ends_with_the_same_weights_and_the_same_answers(tmp_path, monkeypatch):
    whole = learned(prepared(tmp_path), "steps=6", "updates=2", out="whole")
    step = trainer.Trainer.step

    def killed(self, *given, **options):
        if self.num_steps == 4:
            raise RuntimeError("gone")
        return step(self, *given, **options)

    monkeypatch.setattr(trainer.Trainer, "step", killed)
    with pytest.raises(RuntimeError, match="gone"):
        learned(tmp_path, "steps=6", "updates=2", out="broken")
    monkeypatch.undo()
    assert (tmp_path / "broken/state/batches/step-00000004.pt").exists()  # drawn, and not yet learned from
    broken = learned(tmp_path, "steps=6", "updates=2", out="broken")
    assert all_same(load(whole), load(broken))
    for file in (whole / "rollouts").iterdir():
        assert file.read_text() == (broken / "rollouts" / file.name).read_text()
    tokens = [[row["tokens"] for row in read_metrics(run)] for run in (whole, broken)]
    assert tokens[0] == tokens[1] == sorted(set(tokens[0]))


def test_a_planted_hack_of_the_reward_is_caught(tmp_path):
    """The reward wants a lower-case letter somewhere; what is meant is that all of the answer are letters."""
    file = reward_file(
        prepared(tmp_path),
        "def reward(row, answer):\n    return float(any(c in 'xyzjkq' for c in answer))\n\n\n"
        "def meant(row, answer):\n    return float('yes' in answer or not any(c in 'xyzjkq' for c in answer[1:]))\n",
    )
    words = [
        f"reward={file}",
        f"second={file}:meant",
        "cut_is_wrong=false",
        "steps=60",
        "prompts_per_step=4",
        "samples=8",
    ]
    with pytest.raises(DataError, match=r"the reward is gamed\. One of them: "):
        rl.run(settings(tmp_path, *words))
    steps = len(read_metrics(tmp_path / "run"))
    assert steps < 60
    run = rl.run(settings(tmp_path, *words, "stop_if_gamed=false"))  # the same run goes on, as its owner wants it
    assert len(read_metrics(run)) == 60


def test_where_all_answers_are_equally_right_that_is_said_and_the_share_is_a_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    file = reward_file(prepared(tmp_path), "def reward(row, answer):\n    return 1.0\n")
    run = rl.run(settings(tmp_path, f"reward={file}", "cut_is_wrong=false", "steps=2"))
    assert [row["equal_groups"] for row in read_metrics(run)] == [1.0, 1.0]
    assert "equally right: nothing can be learned" in capsys.readouterr().err


def test_what_an_environment_says_is_read_and_never_learned(tmp_path):
    file = reward_file(
        prepared(tmp_path),
        "def reward(row, answer, messages):\n    return float(len(messages) % 4 == 0)\n\n\n"
        "def reply(row, messages):\n"
        "    said = {'role': 'user', 'content': 'say 7 7 7'}\n"
        "    return [said] if len(messages) < 4 else None\n",
    )
    run = rl.run(
        settings(
            tmp_path, f"reward={file}", "cut_is_wrong=false", "answer_tokens=40", "steps=2", "batch.row_tokens=120"
        )
    )
    assert max(row["max_engine_gap"] for row in read_metrics(run)) < 1e-3
    rows = [json.loads(line) for line in (run / "rollouts/step-00001.jsonl").read_text().splitlines()]
    several = [row for row in rows if "messages" in row]
    assert several and all(row["messages"][2]["content"] == "say 7 7 7" for row in several)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reward=chekcs"], "no reward `chekcs`"),
        (["reward=nowhere.py"], "no such file"),
        (["scorer=nubmer"], "no scorer"),
        (["samples=1"], "samples must be at least 2"),
        (["updates=3"], "divide `steps`"),
        (["epochs=2"], "epochs is not for rl"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, words, said):
    with pytest.raises(ConfigError, match=said):
        rl.run(settings(prepared(tmp_path), *words))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def reward(row, answer):\n    return 7\n", "gave 7.0; expected a figure from 0 to 1"),
        ("def reward(row, answer):\n    return row['nothing']\n", "failed on .*KeyError"),
    ],
)
def test_a_reward_of_the_users_that_fails_is_told_with_its_place(tmp_path, text, said):
    file = reward_file(prepared(tmp_path), text)
    with pytest.raises(DataError, match=said):
        rl.run(settings(tmp_path, f"reward={file}"))


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    with open(prepared(tmp_path) / "prompts.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "say " * 60, "answer": "1"}) + "\n")
    learned(tmp_path, "steps=1")
    assert "1 prompts are longer than 58 tokens" in capsys.readouterr().err
