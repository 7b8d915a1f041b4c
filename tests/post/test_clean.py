"""Cleaning: tone, shares, grades, and of what says the same the best."""

import json

import numpy as np
import pytest
import torch

from herd.data.rows import write_rows
from herd.errors import DataError
from herd.post.clean import apologises, balanced, clustered, different, fault_of_tone, grade_of, ranks
from herd.stages.rounds import prune
from tests.model.test_encoder import folder_of
from tests.post.models import save_model


def test_a_tone_is_told_by_emojis_and_exclamation_marks():
    assert fault_of_tone("It opens a file. Use it!") is None
    assert fault_of_tone("Wow! Great! It opens a file.") == "exclamation marks"
    assert fault_of_tone("Nice \U0001f600\U0001f600\U0001f600") == "more than two emojis"
    assert apologises("I’m very sorry, no.") and not apologises("It is a sorry sight.")


def test_a_flag_is_kept_in_at_most_its_share_of_the_rows():
    flags = [True] * 10 + [False] * 30
    stays = balanced(flags, 0.1)
    assert sum(stays) == 33 and all(stays[10:])
    assert balanced(flags, 1.0) == [True] * 40 and sum(balanced(flags, 0.0)) == 30


def test_grades_and_ranks_are_read():
    assert [grade_of(text) for text in ("3", "Grade: 2.", "good")] == [3, 2, None]
    assert ranks([5.0, 1.0, 3.0, 9.0]).tolist() == [0.75, 0.25, 0.5, 1.0]


def test_of_what_says_the_same_the_worthiest_is_kept():
    angles = torch.tensor([0.0, 0.1, 1.5, 1.52, 3.0])
    vectors = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2], [1], [1], [1]])
    assert different(vectors, [0.1, 0.9, 0.5, 0.4, 0.2], similarity=0.95) == [1, 2, 4]
    assert different(vectors, [0.1, 0.9, 0.5, 0.4, 0.2], similarity=0.95, clusters=3) == [1, 2, 4]
    assert different(torch.empty(0, 2), [], similarity=0.9) == []
    labels = clustered(torch.nn.functional.normalize(vectors, dim=1), 3)
    assert labels[0] == labels[1] != labels[2] == labels[3] != labels[4]
    assert np.array_equal(clustered(vectors[:1], 5), [0])


def test_conversations_are_pruned_and_everything_left_out_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    answers = ["the cat sat on the mat.", "the cat sat on the mat .", "a dog ran fast", "Fun! Wow!", "blue road"]
    rows = [{"prompt": f"what {place}", "completion": text} for place, text in enumerate(answers)]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": "Known?", "completion": "yes"}])
    write_rows(tmp_path / "bench.jsonl", [{"question": "KNOWN?"}])
    folder_of("bert", tmp_path / "encoder")
    given = {"conversations": [tmp_path / "rows.jsonl"], "benchmarks": (tmp_path / "bench.jsonl",)}
    out = prune.run(prune.PruneSettings(out=tmp_path / "out", encoder=tmp_path / "encoder", similarity=0.999, **given))
    kept = [json.loads(line)["messages"][-1]["content"] for line in (out / "conversations.jsonl").open()]
    assert answers[0] in kept and "Fun! Wow!" not in kept and "yes" not in kept
    said = capsys.readouterr().err
    assert "1 of 6 prompts stand in bench.jsonl" in said and "exclamation marks (1)" in said
    assert "says what a better one says" in said
    save_model(tmp_path / "judge")
    with pytest.raises(DataError, match="no conversation is left"):  # a judge that says nothing gives no full marks
        judge = prune.JudgeModel(checkpoint=tmp_path / "judge", answer_tokens=1)
        prune.run(prune.PruneSettings(out=tmp_path / "no", judge=judge, **given))
    assert "hold no grade" in capsys.readouterr().err
