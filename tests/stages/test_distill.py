"""A student learns what its teacher finds likely: on conversations, on shards, resumed, refused."""

import json

import pytest
import torch
import torch.nn.functional as F

from herd import config
from herd.data.loader import PackedLoader, Phase
from herd.data.shards import ShardWriter, open_shards
from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import load, save
from herd.run import read_manifest, read_metrics
from herd.stages import distill
from herd.tokenizer.tokenizer import Tokenizer
from herd.train import job
from herd.train.objectives import distill as objective
from herd.train.teacher import ask, read_taught
from herd.types import IGNORE, Batch
from tests.train.tiny import tiny_model

TEXT = "the bees fly from the hive to the lime trees and carry pollen home " * 3
WORDS = ["batch.tokens=512", "batch.row_tokens=64", "batch.micro_tokens=256", "optimizer.learning_rate=1e-2", "top=8"]


@pytest.fixture
def models(tmp_path):
    """A teacher of sharp opinions, a student of none, and documents."""
    tokenizer = Tokenizer.train([TEXT], 540)
    for name, seed, factor in (("teacher", 1, 20.0), ("student", 2, 1.0)):
        model = tiny_model(seed, vocab_size=tokenizer.vocab_size, tie_word_embeddings=False)
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
        save(model, tmp_path / name, tokenizer)
    writer = ShardWriter(tmp_path / "shards/train", "web", 0, tokenizer=tokenizer.fingerprint)
    for start in range(40):
        writer.add(tokenizer.encode(TEXT[start : start + 120], bos=True, eos=True), num_bytes=120)
    writer.close()
    return tmp_path


def settings(path, *words):
    places = [f"teacher={path / 'teacher'}", f"checkpoint={path / 'student'}", f"out={path / 'run'}"]
    return config.load(distill.DistillSettings, None, [*places, *WORDS, *words])


def agreement(path, first, second):
    """How often two models find the same token likeliest, over all vocabulary."""
    documents = open_shards(path / "shards/train")["web"]
    loader = PackedLoader({"web": documents}, [Phase(batch_tokens=512, row_tokens=64, mixture={"web": 1.0})])
    first, second = (load(path / name).eval() for name in (first, second))
    same = [(first(b.tokens).argmax(-1) == second(b.tokens).argmax(-1))[b.labels != IGNORE] for b in loader.epoch()]
    return torch.cat(same).float().mean().item()


def test_the_loss_falls_and_the_student_agrees_with_its_teacher(models):
    before = agreement(models, "teacher", "student")
    run = distill.run(settings(models, f"shards={models / 'shards'}", "epochs=12"))
    losses = [row["loss"] for row in read_metrics(run)]
    assert losses[-1] < 0.5 * losses[0]
    assert agreement(models, "teacher", "run") > before + 0.3
    assert read_manifest(run)["figures"]["agreement"] > 0.4
    assert not (run / "state").exists()


def test_of_conversations_only_the_answers_are_learned(models):
    rows = [{"prompt": f"where is hive {n}", "answer": f"behind tree {n}"} for n in range(20)]
    (models / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = distill.run(settings(models, f"conversations={models / 'rows.jsonl'}", "epochs=4"))
    losses = [row["loss"] for row in read_metrics(run)]
    assert losses[-1] < losses[0]


def test_the_teacher_is_asked_once(models, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    chosen = settings(models, f"shards={models / 'shards'}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "finish", stop)
        distill.run(chosen)
    monkeypatch.setattr(distill, "ask", stop)
    assert read_manifest(distill.run(chosen))["state"] == "finished"


def test_a_teacher_of_another_vocabulary_is_refused(models):
    other = Tokenizer.train([TEXT[::-1]], 530)
    save(tiny_model(vocab_size=other.vocab_size), models / "teacher", other)
    with pytest.raises(ConfigError, match=r"teacher.*vocabulary of 530.*student.*540.*different vocabularies"):
        distill.run(settings(models, f"shards={models / 'shards'}"))


def test_what_to_learn_on_is_one_of_two(models):
    for words in ([], [f"shards={models}", f"conversations={models}"]):
        with pytest.raises(ConfigError, match="either `shards` or `conversations`"):
            settings(models, *words)


def test_damaged_answers_of_the_teacher_are_named(models, tmp_path):
    documents = open_shards(models / "shards/train")
    ask(load(models / "teacher"), documents, tmp_path / "kept", k=4, row_tokens=64, micro_tokens=256)
    (tmp_path / "kept/ids.npy").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the teacher is run again"):
        read_taught(tmp_path / "kept", documents, 4)


def test_the_objective_is_the_divergence_over_the_kept_tokens_and_the_rest():
    model = tiny_model()
    hidden, labels = torch.randn(1, 6, 32), torch.tensor([[1, 2, 3, 4, IGNORE, 5]])
    teacher = (torch.randn(1, 6, 96) * 3).log_softmax(-1)
    log_probs, ids = teacher.topk(5)
    same = torch.zeros(1, 6, dtype=torch.int32)
    columns = {"teacher_ids": ids.int(), "teacher_log_probs": log_probs}
    batch = Batch(tokens=labels.clamp(min=0), labels=labels, positions=same.long(), document_ids=same, columns=columns)
    loss = objective(hidden, model.lm_head, batch)
    student = model.lm_head(hidden).log_softmax(-1)
    expected = 0.0
    for place in (0, 1, 2, 3, 5):
        t, s = (x[0, place, ids[0, place]].exp() for x in (teacher, student))
        t, s = torch.cat([t, 1 - t.sum()[None]]), torch.cat([s, 1 - s.sum()[None]])
        expected += F.kl_div(s.log(), t, reduction="sum").item()
    assert loss.sum.item() == pytest.approx(expected, rel=1e-4) and loss.count.item() == 5
