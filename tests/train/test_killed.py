"""A training run killed with SIGKILL at random moments ends with the losses of one that was left alone.

Its mixture, row length and batch change on the way, a range of steps is passed over, and losses that are no number
set the run back.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from herd.run import read_metrics

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from herd.data.loader import PackedLoader, Phase
from herd.train.optimizer import OptimizerSettings
from herd.train.stability import StabilitySettings
from herd.train.trainer import SavingSettings, finish, train
from tests.train.test_stability import spoiled
from tests.train.tiny import corpus, run_folder, tiny_model

phases = [
    Phase(batch_tokens=256, row_tokens=32, mixture={"library": 2.0, "pydoc": 1.0}),
    Phase(step=90, batch_tokens=512, row_tokens=64, mixture={"library": 1.0, "pydoc": 3.0}),
]
sources = {"library": corpus(), "pydoc": corpus(30, seed=1, source="pydoc")}
loader = PackedLoader(sources, phases, micro_tokens=128)

with run_folder(Path(sys.argv[1])) as run:
    if not run.finished:
        model = tiny_model(dtype=torch.bfloat16)
        saving = SavingSettings(save_seconds=0.05)
        print("ready", flush=True)
        options = {"saving": saving, "optimizer": OptimizerSettings(), "skipped": ["40-49", "88-93"]}
        options["stability"] = StabilitySettings(action="rollback", rollback_steps=20)
        objective = spoiled(loader, [70, 150], float("nan"))
        train(model, objective, loader, run, num_steps=200, **options)
        finish(model, run)
"""


def start(path):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=environment, stdout=subprocess.PIPE)


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments_the_loss_curve_is_the_undisturbed_one(tmp_path, kills):
    whole = start(tmp_path / "whole")
    whole.stdout.readline()
    began = time.monotonic()
    assert whole.wait() == 0
    seconds = time.monotonic() - began
    moments = random.Random(0)
    for _ in range(kills):
        process = start(tmp_path / "killed")
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 2.0 / kills) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    whole, killed = (
        [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert killed == whole
    skips = [json.loads((tmp_path / name / "skips.json").read_text()) for name in ("whole", "killed")]
    assert skips[0] == skips[1] and len(skips[0]) > 1
