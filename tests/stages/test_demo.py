"""The whole story on a few pages: killed anywhere, it ends where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.run import read_manifest, read_metrics
from herd.stages.demo import STORY

_MODULES = (
    "argparse ast base64 calendar cmd code codecs configparser csv datetime difflib dis email enum fileinput gzip"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A folder of real HTML pages, as a user would have: some modules' documentation."""
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run(
        [sys.executable, "-m", "pydoc", "-w", *_MODULES.split()], cwd=folder, check=True, capture_output=True
    )
    return folder


def command(folder: Path, pages: Path) -> list[str]:
    return [sys.executable, "-m", "herd", "demo", str(folder), f"pages={pages}", "pretrain_tokens=60000"]


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for step in STORY:
        rows = read_metrics(folder / step.name) if (folder / step.name).exists() else []
        found[step.name] = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    return found


@pytest.mark.slow
def test_a_demo_killed_at_random_moments_ends_like_an_undisturbed_one(tmp_path, pages):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"HERD_QUIET": "1"}}
    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole", pages), check=True, **quiet)
    whole_seconds = time.monotonic() - began

    draw = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command(tmp_path / "killed", pages), **quiet)
        time.sleep(2 + draw.random() * whole_seconds / 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path / "killed", pages), check=True, **quiet)

    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    manifest = read_manifest(tmp_path / "killed")
    assert manifest["state"] == "finished"
    assert (tmp_path / "killed" / manifest["checkpoint"] / "model.safetensors").exists()
    assert "<html" in (tmp_path / "killed" / "report.html").read_text()

    again = time.monotonic()
    subprocess.run(command(tmp_path / "killed", pages), check=True, **quiet)
    assert time.monotonic() - again < 30  # nothing is done twice

    ask = [sys.executable, "-m", "herd", "chat", str(tmp_path / "killed"), "json=true", "max_tokens=8"]
    answers = subprocess.run(ask, input="The module\n", capture_output=True, text=True, check=True)
    assert len([json.loads(line) for line in answers.stdout.splitlines()]) == 1
