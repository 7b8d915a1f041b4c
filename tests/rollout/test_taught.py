"""Distillation on answers: the teacher's as they stand, or the student's own as the teacher sees them."""

import pytest
import torch

from herd import config
from herd.errors import ConfigError
from herd.formats.checkpoint import load, save
from herd.run import read_manifest, read_metrics
from herd.stages import distill
from tests.rollout.models import all_same, prepared, tiny_model, tokenizer

WORDS = [
    "batch.row_tokens=64", "batch.micro_tokens=256", "batch.tokens=256", "optimizer.learning_rate=1e-2", "top=8",
    "answer_tokens=6", "prompts_per_step=6", "steps=12", "saving.save_seconds=1e6", "compile=off", "dtype=fp32",
]  # fmt: skip


@pytest.fixture
def models(tmp_path):
    teacher = tiny_model(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)  # of sharp opinions
    save(teacher, tmp_path / "teacher", tokenizer())
    return prepared(tmp_path)


def settings(folder, *words, out="run"):
    places = [f"{name}={folder / file}" for name, file in (("teacher", "teacher"), ("checkpoint", "start"))]
    places += [f"prompts={folder / 'prompts.jsonl'}", f"out={folder / out}"]
    return config.load(distill.DistillSettings, None, [*places, *WORDS, *words])


def test_the_student_comes_nearer_to_its_teacher_on_its_own_answers(models):
    run = distill.run(settings(models, "how=own_answers"))
    losses = [row["loss"] for row in read_metrics(run)]
    assert len(losses) == 12 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    again = distill.run(settings(models, "how=own_answers", out="again"))
    assert all_same(load(run), load(again))


def test_the_teachers_answers_are_kept_and_learned(models):
    run = distill.run(settings(models, "how=answers", "samples=2", "epochs=6"))
    losses = [row["loss"] for row in read_metrics(run)]
    assert losses[-1] < losses[0]
    count = len((run / "answers.jsonl").read_text().splitlines())
    assert 9 <= count == read_manifest(run)["figures"]["answers"] <= 18


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["how=probabilities"], "are for answers"),
        (["how=answers", "shards=x"], "leave shards and conversations out"),
        (["how=own_answers", "epochs=2"], "goes by `steps`"),
    ],
)
def test_what_does_not_go_together_is_refused(models, words, said):
    with pytest.raises(ConfigError, match=said):
        distill.run(settings(models, *words))
