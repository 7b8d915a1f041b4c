from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from herd.config import find_recipe
from herd.markup import read_markup
from herd.plan import measured
from herd.plan.measured import SIZES
from herd.stages import doctor


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A machine whose rates are known."""
    monkeypatch.setattr(measured, "quiet_matmul_rate", lambda dtype, device: 6e11 if dtype.itemsize == 2 else 3e11)
    monkeypatch.setattr(measured, "memory_bandwidth", lambda device: 2e10)


def test_doctor_says_what_is_here_and_what_it_can_do(capsys):
    assert doctor.run(doctor.DoctorSettings(json=True)) == 0
    printed = json.loads(capsys.readouterr().out)
    machine = printed["machine"]
    assert (machine["matmul_fp32"], machine["matmul_bf16"], machine["bandwidth"]) == (3e11, 6e11, 2e10)
    assert machine["torch"] == torch.__version__
    sizes = {row["size"]: row for row in printed["can_do"]}
    assert sizes["8B"]["parameters"] == 8_030_261_248
    assert sizes["demo 5M"]["train_fits"] and sizes["demo 5M"]["train_seconds"] < sizes["1B"]["train_seconds"]


def test_the_table_is_for_people(capsys):
    doctor.run(doctor.DoctorSettings())
    printed = capsys.readouterr().out
    assert "600 GFLOP/s in bf16, 300 in fp32" in printed and "20.0 GB/s" in printed
    assert "What it can do" in printed and "herd demo" in printed


def test_doctor_and_demo_speak_of_the_same_model():
    model = read_markup(find_recipe(Path("demo/pretrain.yaml")))["model"]
    assert model["num_hidden_layers"] == SIZES["demo 5M"].num_hidden_layers
    assert model["hidden_size"] == SIZES["demo 5M"].hidden_size
