"""Hangs and stragglers are named, with real processes; torchrun starts a run again and it ends as if undisturbed."""

import json
import os
import subprocess
import sys

import pytest

from herd.parallel.launch import switch_on_flight_recorder
from herd.run import read_metrics
from herd.train.watch import COLLECTIVE, HUNG, Watchdog, hang_report, stragglers

WORKER = """
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from herd.parallel.launch import _meet
from herd.train.objectives import next_token
from herd.train.saving import SavingSettings
from herd.train.trainer import Trainer
from tests.train.tiny import run_folder, tiny_loader, tiny_model

folder, fault = Path(sys.argv[1]), sys.argv[2]
_meet("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mark = folder / "happened"

def objective(hidden, head, batch):
    if rank == 1 and fault == "slow":
        time.sleep(0.05)
    return next_token(hidden, head, batch)

class Loader:
    def __init__(self):
        self.inner = tiny_loader(rank=rank, world=world)
        self.row_tokens, self.names = self.inner.row_tokens, self.inner.names
    def tokens_before(self, step):
        return self.inner.tokens_before(step)
    def batches(self, step):
        if step == 7 and rank == 1 and not mark.exists():
            mark.write_text("")
            if fault == "hang":
                time.sleep(600)
            if fault == "die":
                os.kill(os.getpid(), 9)
        return self.inner.batches(step)

with run_folder(folder / f"run-{rank}" if rank else folder / "run-0") as run:
    saving = SavingSettings(save_seconds=0.01, hang_seconds=float(sys.argv[3]))
    run.path = folder / "run-0" if fault != "apart" else run.path
    Trainer(tiny_model(), objective, run, saving=saving).fit(Loader(), 12)
dist.destroy_process_group()
"""


def start(folder, fault, hang_seconds, restarts=0):
    (folder / "worker.py").write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return subprocess.run(
        [sys.executable, *command, str(folder / "worker.py"), str(folder), fault, str(hang_seconds)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_hang_is_reported_with_the_rank_that_is_waited_for_and_ends_the_run(tmp_path):
    assert start(tmp_path, "hang", 10).returncode != 0
    report = next((tmp_path / "run-0").glob("hang-rank-*.txt")).read_text()
    assert "the others wait for rank 1" in report and "sum of gradients" in report
    assert [row["step"] for row in read_metrics(tmp_path / "run-0")] == list(range(1, 8))


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_undisturbed(tmp_path):
    for name, fault in (("whole", "none"), ("killed", "die")):
        (tmp_path / name).mkdir()
        found = start(tmp_path / name, fault, 0, restarts=1)
        assert found.returncode == 0, found.stderr[-2000:]
    whole, killed = (
        [(r["step"], r["loss"]) for r in read_metrics(tmp_path / name / "run-0")] for name in ("whole", "killed")
    )
    assert killed == whole and len(whole) == 12


@pytest.mark.slow
def test_the_slowest_rank_is_named_in_every_line_of_the_metrics(tmp_path):
    assert start(tmp_path, "slow", 0).returncode == 0
    rows = read_metrics(tmp_path / "run-0")
    assert [row["slowest_rank"] for row in rows[2:]] == [1] * 10
    assert min(row["slowest_over_median"] for row in rows[2:]) > 1.2


HANGING = """
import sys, time
from pathlib import Path
from herd.train.watch import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), 0.5)
watchdog.now(4, "forward and backward")
time.sleep(60)
"""


def test_one_process_that_hangs_writes_down_its_stacks_and_ends_itself(tmp_path):
    assert subprocess.run([sys.executable, "-c", HANGING, str(tmp_path)], check=False).returncode == HUNG
    assert "at step 5, in forward and backward" in (tmp_path / "hang.txt").read_text()
    assert (
        "sleep" in (tmp_path / "stacks-rank-0.txt").read_text()
        or "line 7" in (tmp_path / "stacks-rank-0.txt").read_text()
    )


def test_what_a_hang_left_behind_outlives_the_next_start(tmp_path):
    subprocess.run([sys.executable, "-c", HANGING, str(tmp_path)], timeout=60, check=False)
    left = (tmp_path / "stacks-rank-0.txt").read_text()
    watchdog = Watchdog(tmp_path, 60)
    watchdog.now(0, "reading")
    watchdog.close()
    assert left and (tmp_path / "stacks-rank-0.txt").read_text() == left


def test_the_report_names_who_is_behind(tmp_path):
    (tmp_path / "ranks").mkdir()
    for rank, (step, doing) in enumerate(
        [(8, COLLECTIVE + "sum"), (8, COLLECTIVE + "sum"), (8, "forward"), (8, COLLECTIVE + "sum")]
    ):
        (tmp_path / "ranks" / f"rank-{rank}.json").write_text(json.dumps({"step": step, "doing": doing}))
    assert "the others wait for rank 2\n" in hang_report(tmp_path, 4, 8, "x", 5)
    (tmp_path / "ranks" / "rank-2.json").unlink()
    assert "rank 2: no heartbeat" in hang_report(tmp_path, 4, 8, "x", 5)


def test_the_slowest_rank_is_found():
    assert stragglers([1.0, 1.1, 3.0, 0.9]) == {"slowest_rank": 2, "slowest_over_median": pytest.approx(3 / 1.05)}


def test_the_flight_recorder_is_switched_on_unless_someone_set_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    monkeypatch.delenv("TORCH_NCCL_TRACE_BUFFER_SIZE", raising=False)
    switch_on_flight_recorder(tmp_path)
    assert os.environ["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "2000" and os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.delenv(name, raising=False)
