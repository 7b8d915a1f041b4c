"""Batches made while training goes on: kept, so that a killed run learns from what it had drawn, and let go of."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from herd.errors import CapacityError, CheckpointError, DataError
from herd.run import read_metrics
from herd.train.hooks import Hook
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings
from herd.train.sources import Made
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer
from herd.types import IGNORE, Batch
from tests.train.tiny import VOCABULARY, run_folder, tiny_loader, tiny_model

ROWS, ROW_TOKENS = 4, 16
NEVER, ALWAYS = SavingSettings(save_seconds=1e6), SavingSettings(save_seconds=1e-6)


def rows_of(tokens: torch.Tensor) -> Batch:
    """Whole rows of one document each: (B, T + 1) token ids."""
    ids = torch.zeros(tokens[:, :-1].shape, dtype=torch.int32)
    positions = torch.arange(ids.shape[1]).expand(ids.shape).contiguous()
    return Batch(tokens=tokens[:, :-1].clone(), labels=tokens[:, 1:].clone(), positions=positions, document_ids=ids)


class Chance:
    """Rows that nobody can draw a second time; notes for which steps they were drawn."""

    def __init__(self, rows=ROWS):
        self.asked, self.rows = [], rows

    def __call__(self, step):
        self.asked.append(step)
        draw = torch.Generator().manual_seed(int.from_bytes(os.urandom(6), "little"))
        return [rows_of(torch.randint(VOCABULARY, (self.rows // 2, ROW_TOKENS + 1), generator=draw)) for _ in range(2)]


def fit(path, make, num_steps=12, objective=next_token, **options):
    with run_folder(path) as run:
        source = Made(path / "state", make, row_tokens=ROW_TOKENS, step_tokens=ROWS * ROW_TOKENS)
        options = {"optimizer": OptimizerSettings(learning_rate=1e-3), "saving": NEVER} | options
        Trainer(model := tiny_model(), objective, run, **options).fit(source, num_steps)
    return model


def kept(path):
    return [int(file.stem[5:]) for file in sorted((path / "state/batches").iterdir())]


def losses(path):
    return [(row["step"], row["loss"], row["gradient_norm"], row["tokens"]) for row in read_metrics(path)]


def break_off(step):
    def fail(_):
        raise RuntimeError("gone")  # like a kill: nothing is saved

    return Hook(fail, lambda done, num_steps: done == step)


def test_a_run_that_is_gone_learns_once_more_from_what_it_had_drawn(tmp_path):
    make, steps = Chance(), []

    def objective(*parts):
        steps.append(1)
        if len(steps) == 20:  # in step 10, two micro-batches each
            raise RuntimeError("gone")
        return next_token(*parts)

    with pytest.raises(RuntimeError, match="gone"):
        fit(tmp_path, make, objective=objective)
    before = losses(tmp_path)
    assert len(before) == 9 and make.asked == [*range(10)]
    fit(tmp_path, make)  # from the state after step 2, the rehearsal's
    assert losses(tmp_path)[:9] == before
    assert make.asked == [*range(12)]  # nothing was drawn twice


def test_what_no_state_leads_back_to_is_let_go_of(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, Chance(), saving=ALWAYS, hooks=[break_off(9)])
    states = sorted(int(state.name[5:]) for state in (tmp_path / "state").glob("step-*"))
    assert kept(tmp_path) == [*range(states[0], 9)] and len(states) == 2


def test_a_roll_back_passes_over_what_was_drawn_and_the_states_for_it_keep_theirs(tmp_path):
    make, bad = Chance(), []

    def objective(hidden, head, batch):
        loss = next_token(hidden, head, batch)
        mark = batch.tokens.tolist()
        if len(make.asked) == 9 and not bad:  # the first batch of step 9
            bad.append(mark)
        return loss._replace(sum=loss.sum * (float("nan") if mark in bad else 1.0))

    stability = StabilitySettings(action="rollback", rollback_steps=3)
    with pytest.raises(RuntimeError):
        fit(tmp_path, make, objective=objective, stability=stability, saving=ALWAYS, hooks=[break_off(10)])
    # step 6 is at place 9 now; states are those after 6 and 9 steps, for a roll-back, and the newest two
    assert make.asked == [*range(13)] and kept(tmp_path) == [*range(9, 13)]
    before = losses(tmp_path)
    fit(tmp_path, make, objective=objective, stability=stability)
    assert losses(tmp_path)[:10] == before and make.asked == [*range(15)]


def test_a_source_is_whatever_answers_its_four_questions(tmp_path):
    with run_folder(tmp_path / "loader") as run:
        Trainer(tiny_model(), next_token, run).fit(tiny_loader(), 3)
    inner = tiny_loader()
    with run_folder(tmp_path / "made") as run:
        source = Made(tmp_path / "made/state", inner.batches, row_tokens=32, step_tokens=256)
        Trainer(tiny_model(), next_token, run).fit(source, 3)
    assert losses(tmp_path / "loader") == losses(tmp_path / "made")


def test_steps_can_be_taken_without_a_loop(tmp_path):
    loader = tiny_loader()
    with run_folder(tmp_path / "loop") as run:
        Trainer(tiny_model(), next_token, run).fit(loader, 3)
    with run_folder(tmp_path / "alone") as run:
        trainer = Trainer(tiny_model(), next_token, run)
        figures = [trainer.step(loader.batches(step), num_steps=3) for step in range(2)]
        trainer.save()
        again = Trainer(tiny_model(seed=5), next_token, run)
        assert again.restore() and again.num_steps == 2
        figures.append(again.step(loader.batches(2), num_steps=3))
    rows = read_metrics(tmp_path / "loop")
    assert [one["loss"] for one in figures] == [row["loss"] for row in rows]
    assert [one["learning_rate"] for one in figures] == [row["learning_rate"] for row in rows]


@pytest.mark.parametrize(
    "made, told",
    [
        ([], "step 1: no batches were generated"),
        ([rows_of(torch.ones(1, 9, dtype=torch.int64))], "8 tokens were generated instead"),
    ],
)
def test_nothing_made_and_another_amount_are_refused(tmp_path, made, told):
    with pytest.raises(DataError, match=told):
        fit(tmp_path, lambda step: made)


def test_a_damaged_kept_batch_is_one_clear_error(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, Chance(), hooks=[break_off(4)])
    (tmp_path / "state/batches/step-00000004.pt").write_bytes(b"no batch")
    with pytest.raises(CheckpointError, match=r"step-00000004\.pt: damaged .* delete it"):
        fit(tmp_path, Chance())


def test_batches_that_cannot_be_kept_are_not_learned_from(tmp_path):
    def make(step):
        (tmp_path / "state").mkdir()
        (tmp_path / "state/batches").write_text("a file where the folder should be: as good as a full disk")
        return Chance()(step)

    with pytest.raises(CapacityError, match="could not be written"):
        fit(tmp_path, make)
    assert not losses(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_kept_batches_are_shared_out_over_any_number_of_processes(tmp_path, world):
    options = {"row_tokens": ROW_TOKENS, "step_tokens": ROWS * ROW_TOKENS}
    whole = Made(tmp_path, make := Chance(), **options).batches(0)
    parts = [Made(tmp_path, make, rank=rank, world=world, **options).batches(0) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1 and make.asked == [0]
    learned = [one.tokens for part in parts for one in part if (one.labels != IGNORE).any()]
    assert sorted(tokens.sum().item() for tokens in learned) == sorted(one.tokens.sum().item() for one in whole)


# ---- drawn from the model itself -------------------------------------------------------------------------------------

SAMPLING = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from herd.infer.engine import Engine
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings, finish
from herd.train.sources import Made
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer
from herd.types import SamplingParams
from tests.train.test_sources import rows_of
from tests.train.tiny import run_folder, tiny_model

ROWS, LENGTH = 4, 24
path = Path(sys.argv[1])
tokenizer = Tokenizer.train(["the cat sat on the mat and asked what is the use of a hat " * 3], 540)
model = tiny_model(dtype=torch.bfloat16, vocab_size=tokenizer.vocab_size)

def make(step):
    "Rows that the model as it is continues from a few bytes: it learns from itself."
    engine = Engine.of(model, tokenizer)
    params = SamplingParams(temperature=1.0, max_tokens=LENGTH, min_tokens=LENGTH, seed=step)
    prompts = [f"{step + row} " for row in range(ROWS)]
    made = [tokenizer.encode(p, bos=True) + one.tokens for p, one in zip(prompts, engine.generate(prompts, params))]
    with open(path / "made.txt", "a") as file:
        file.write(f"{step}\\n")
    return [rows_of(torch.tensor([row[-LENGTH - 1:]])) for row in made]

def objective(hidden, head, batch):
    loss = next_token(hidden, head, batch)
    return loss._replace(sum=loss.sum * (float("nan") if batch.tokens.sum() % 199 == 0 else 1.0))

with run_folder(path) as run:
    if not run.finished:
        print("ready", flush=True)
        source = Made(path / "state", make, row_tokens=LENGTH, step_tokens=ROWS * LENGTH)
        stability = StabilitySettings(action="rollback", rollback_steps=10, most=1000)
        options = {"optimizer": OptimizerSettings(), "saving": SavingSettings(save_seconds=0.1), "stability": stability}
        Trainer(model, objective, run, **options).fit(source, 60)
        finish(model, run)
"""


def start(path):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, "-c", SAMPLING, str(path)], env=environment, stdout=subprocess.PIPE)


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.slow)])
def test_learning_from_its_own_answers_and_killed_anywhere_a_run_has_the_undisturbed_curve(tmp_path, kills):
    whole = start(tmp_path / "whole")
    whole.stdout.readline()
    began = time.monotonic()
    assert whole.wait() == 0
    seconds, moments = time.monotonic() - began, random.Random(0)
    for _ in range(kills):
        process = start(tmp_path / "killed")
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 2.0 / kills) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    skips = [(tmp_path / name / "skips.json").read_text() for name in ("whole", "killed")]
    assert skips[0] == skips[1]
