"""A training run killed with SIGKILL at random moments ends with the losses of one that was left alone.

Its mixture, row length and batch change on the way, a range of steps is passed over, and losses that are no number
set the run back. Of two processes either is killed, or both, while their state is being written.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.run import read_metrics
from tests.parallel.torchrun import ENVIRONMENT, SECONDS, kill_all, workers

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from herd.data.loader import PackedLoader, Phase
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings, finish
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer
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
        Trainer(model, objective, run, **options).fit(loader, 200)
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


TOGETHER = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from herd.parallel.launch import joined, open_run_together
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train import checkpoint
from herd.train.saving import SavingSettings
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer
from tests.train.test_stability import spoiled
from tests.train.tiny import TinySettings, tiny_loader, tiny_model

quick = checkpoint._hash
def slow(file):  # a state is written for as long as some steps take
    time.sleep(0.1)
    return quick(file)
checkpoint._hash = slow

with joined() as device:
    whole = tiny_model(tie_word_embeddings=False)
    layout = check(whole.config, settings := ParallelSettings(shard=2), 2, row_tokens=32)
    model = ParallelModel(whole.config, settings, Mesh(layout)).materialize()
    model.fill(whole.named_parameters())
    loader = tiny_loader(rank=layout.data_index(int(os.environ["RANK"])), world=2)
    objective = spoiled(tiny_loader(rank=1, world=2), [50], float("nan"))
    with open_run_together(Path(sys.argv[1]), stage="tiny", settings=TinySettings(), inputs={}) as run:
        saving = SavingSettings(save_seconds=0.15)
        stability = StabilitySettings(action="rollback", rollback_steps=20)
        Trainer(model, objective, run, saving=saving, stability=stability).fit(loader, NUM_STEPS)
"""


def start_together(folder: Path, num_steps: int) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(TOGETHER.replace("NUM_STEPS", str(num_steps)))
    numbers = ["--nproc-per-node", "2", "--max-restarts", "100", "--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *numbers, str(folder / "script.py"), str(folder / "run")]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)


def worker_of_rank(process: subprocess.Popen, rank: int) -> int:
    [found] = [
        pid for pid in workers(process) if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    ]
    return found


def wait_until_a_state_is_written_after(run: Path, step: int, process: subprocess.Popen) -> None:
    def is_written() -> bool:
        return any(int(aside.name[6:14]) > step for aside in (run / "state").glob(".step-*.tmp"))

    while process.poll() is None and not is_written():
        time.sleep(0.001)
    assert process.poll() is None, "it ended before it could be killed"


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_two_processes_killed_while_their_state_is_written_have_the_undisturbed_loss_curve(tmp_path, kills):
    num_steps, moments = 40 * (kills + 1), random.Random(0)
    assert start_together(tmp_path / "whole", num_steps).wait(SECONDS) == 0
    process = start_together(tmp_path / "killed", num_steps)
    for kill in range(kills):
        wait_until_a_state_is_written_after(tmp_path / "killed/run", 30 * (kill + 1), process)
        time.sleep(moments.uniform(0.0, 0.15))
        if kill % 3 == 2:
            kill_all(process)
            process = start_together(tmp_path / "killed", num_steps)
        else:
            os.kill(worker_of_rank(process, kill % 3), signal.SIGKILL)
    assert process.wait(SECONDS) == 0
    whole, killed = (
        [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(tmp_path / name / "run")]
        for name in ("whole", "killed")
    )
    assert len(whole) == num_steps and killed == whole
