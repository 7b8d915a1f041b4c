"""A part of the committed measurement, so that it stays true: canonical solutions pass, mutants fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sandbox_mutations
from herd import sandbox
from herd.sandbox import Pool

pytestmark = pytest.mark.slow

RESULTS = Path(sandbox_mutations.ROOT / "benchmarks/results/sandbox_mutations.json")


@pytest.mark.parametrize(("name", "rows", "every"), [("HumanEval", "humaneval", 10), ("MBPP", "mbpp", 40)])
def test_canonical_solutions_pass_and_mutants_fail_or_are_accounted_for(name, rows, every, shared_data):
    problems = getattr(sandbox_mutations, rows)(shared_data)[::every]
    with Pool(level=sandbox.strongest()) as pool:
        found = sandbox_mutations.judged(problems, pool)
    assert (found["broken"], found["canonical_passed"]) == ({}, len(problems))
    told = json.loads(RESULTS.read_text())["sets"][name]["survivors"]
    assert set(found["survivors"]) <= set(told)


def test_every_survivor_is_accounted_for():
    sets = json.loads(RESULTS.read_text())["sets"]
    assert {name: one["mutants"] for name, one in sets.items()} == {"HumanEval": 164, "MBPP": 724}
    for one in sets.values():
        assert one["mutants"] - one["mutants_failed"] == len(one["survivors"])
        assert all(told["finding"].startswith(("weak tests: ", "equivalent: ")) for told in one["survivors"].values())


def test_the_speed_is_measured(shared_data, tmp_path):
    if sandbox.strongest() != "full":
        pytest.skip(f"the strongest level here is `{sandbox.strongest()}`")
    command = [
        "benchmarks/sandbox.py",
        str(shared_data),
        "--runs",
        "20",
        "--turns",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([sys.executable, *command], cwd=sandbox_mutations.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    many = json.loads((tmp_path / "out").read_text())["many"]
    assert many["passed"] == 20 and many["runs_per_second"] > 0
