"""Trackers and energy counters, offline."""

import pytest

from herd.errors import ConfigError
from herd.run import read_metrics
from herd.train import trackers
from herd.train.energy import Energy
from herd.train.objectives import next_token
from herd.train.trainer import SavingSettings, train
from tests.train.tiny import run_folder, tiny_loader, tiny_model


def test_tensorboard_gets_the_figures_of_metrics_jsonl(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with run_folder(tmp_path) as run:
        saving = SavingSettings(trackers=["tensorboard"])
        train(tiny_model(), next_token, tiny_loader(), run, num_steps=5, saving=saving)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in rows]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_tracker_that_is_not_installed_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="`wandb`, which is not installed; run `pip install wandb`"):
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
