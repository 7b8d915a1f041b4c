from __future__ import annotations

import json
from pathlib import Path

from herd.config import find_recipe
from herd.markup import read_markup
from herd.plan.measured import SIZES
from herd.stages import doctor


def test_doctor_says_what_is_here_and_what_it_can_do(capsys):
    assert doctor.run(doctor.DoctorSettings(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["matmul_fp32"] > 1e8 and found["machine"]["memory"] > 1e9
    sizes = {row["size"]: row for row in found["can_do"]}
    assert sizes["8B"]["parameters"] == 8_030_261_248
    assert sizes["demo 5M"]["train_fits"] and sizes["demo 5M"]["train_seconds"] < sizes["1B"]["train_seconds"]


def test_the_table_is_for_people(capsys):
    doctor.run(doctor.DoctorSettings())
    printed = capsys.readouterr().out
    assert "GFLOP/s" in printed and "What it can do" in printed and "herd demo" in printed


def test_doctor_and_demo_speak_of_the_same_model():
    model = read_markup(find_recipe(Path("demo/pretrain.yaml")))["model"]
    assert model["num_hidden_layers"] == SIZES["demo 5M"].num_hidden_layers
    assert model["hidden_size"] == SIZES["demo 5M"].hidden_size
