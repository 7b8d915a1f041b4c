"""A training run killed with SIGKILL at random moments ends with the losses of one that was left alone."""

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
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.trainer import SavingSettings, finish, train
from tests.train.tiny import run_folder, tiny_loader, tiny_model

with run_folder(Path(sys.argv[1])) as run:
    if not run.finished:
        model = tiny_model(dtype=torch.bfloat16)
        saving = SavingSettings(save_seconds=0.05)
        print("ready", flush=True)
        train(model, next_token, tiny_loader(), run, num_steps=200, saving=saving, optimizer=OptimizerSettings())
        finish(model, run)
"""


def start(path):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=environment, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_killed_at_random_moments_the_loss_curve_is_the_undisturbed_one(tmp_path):
    whole = start(tmp_path / "whole")
    whole.stdout.readline()
    began = time.monotonic()
    assert whole.wait() == 0
    seconds = time.monotonic() - began
    moments = random.Random(0)
    for _ in range(10):
        process = start(tmp_path / "killed")
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.25) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    whole, killed = (
        [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert killed == whole
