"""Trackers and energy counters, offline."""

import sys
from types import SimpleNamespace

import pytest

from herd.errors import ConfigError
from herd.run import read_metrics
from herd.train import trackers
from herd.train.energy import Energy
from herd.train.hooks import Hook
from herd.train.objectives import next_token
from herd.train.saving import SavingSettings
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer
from tests.train.test_stability import spoiled
from tests.train.tiny import run_folder, tiny_loader, tiny_model


def test_tensorboard_gets_the_figures_of_metrics_jsonl(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with run_folder(tmp_path) as run:
        saving = SavingSettings(trackers=["tensorboard"])
        Trainer(tiny_model(), next_token, run, saving=saving).fit(tiny_loader(), 5)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in rows]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_run_that_was_interrupted_and_rolled_back_is_one_curve_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def interrupt(step):
        raise RuntimeError  # nothing is saved: the steps since the last state are made again

    objective = spoiled(tiny_loader(), [13], float("nan"))
    options = {"saving": SavingSettings(trackers=["tensorboard"], save_seconds=1e6)}
    options["stability"] = StabilitySettings(action="rollback", rollback_steps=4)
    with run_folder(tmp_path) as run, pytest.raises(RuntimeError):
        hooks = [Hook(interrupt, lambda step, num_steps: step == 7)]
        options["hooks"] = hooks
        Trainer(tiny_model(), objective, run, **options).fit(tiny_loader(), 20)
    (tmp_path / "state/step-00000007/manifest.json").unlink()
    options["hooks"] = []
    with run_folder(tmp_path) as run:
        Trainer(tiny_model(), objective, run, **options).fit(tiny_loader(), 20)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in rows] == [*range(1, 21)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


class FakeRun:
    """What `wandb.init` and `mlflow.start_run` give."""

    def __init__(self, identity, seen):
        self.info, self.seen = SimpleNamespace(run_id=identity), seen

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, figures):
        self.seen.append((self.info.run_id, figures["step"], figures["loss"]))

    def finish(self):
        pass


def test_a_resumed_run_is_the_same_run_to_wandb_and_mlflow_and_another_folder_another(tmp_path, monkeypatch):
    seen, begun = [], []
    wandb = SimpleNamespace(init=lambda id, **settings: FakeRun(id, seen))

    def start_run(run_id=None, run_name=None):
        begun.append(run_id or f"new {len(begun)}")
        return FakeRun(begun[-1], [])

    nothing = dict.fromkeys(("set_tracking_uri", "set_experiment", "log_metrics"), lambda *a, **k: None)
    mlflow = SimpleNamespace(start_run=start_run, end_run=lambda: None, **nothing)
    for name, module in (("wandb", wandb), ("mlflow", mlflow)):
        monkeypatch.setitem(sys.modules, name, module)
    for folder in ("a/sft", "a/sft", "b/sft"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        found = trackers.Trackers(["wandb", "mlflow"], tmp_path / folder)
        found.log(1, {"loss": 2.0})
        found.close()
    first, again, other = (identity for identity, _, _ in seen)
    assert first == again != other
    assert begun == ["new 0", "new 0", "new 2"]


def test_a_tracker_that_is_not_installed_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="`wandb` is not installed; run `pip install wandb`"):
        trackers.Trackers(["wandb"], tmp_path)


def test_energy_is_read_where_it_is_counted_and_a_counter_may_begin_anew(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    (zone / "energy_uj").write_text("999000000\n")
    energy = Energy(tmp_path)
    assert energy
    (zone / "energy_uj").write_text("2000000\n")
    assert energy.joules() == pytest.approx(3.0)
    (zone / "energy_uj").write_text("4500000\n")
    assert energy.joules() == pytest.approx(2.5)


def test_where_nothing_counts_energy_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("herd.train.energy._gpus", list)
    assert not Energy(tmp_path)
