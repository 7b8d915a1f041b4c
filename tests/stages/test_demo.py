"""The whole story: planned for ten minutes, killed anywhere it ends where an undisturbed run ends, and what pages print
about its folders runs there."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd import cli, config
from herd.errors import ConfigError
from herd.run import read_manifest, read_metrics
from herd.stages import find
from herd.stages.demo import DemoSettings, read_story
from herd.story import plan
from tests.test_printed_commands import call, calls, command_of


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory) -> Path:
    """Where `herd demo` has gone through the whole story once: `pages/` as a user would have them, and `runs/demo/`."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "pages").mkdir()
    modules = (
        "argparse ast base64 calendar cmd code codecs configparser csv datetime difflib dis email enum fileinput gzip "
        "glob graphlib hashlib heapq hmac inspect json keyword locale"
    )
    pydoc = [sys.executable, "-m", "pydoc", "-w", *modules.split()]
    subprocess.run(pydoc, cwd=folder / "pages", check=True, capture_output=True)
    demo = [sys.executable, "-m", "herd", "demo", "pages=pages", "pretrain_tokens=30000"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(demo, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def steps(folder: Path) -> list[str]:
    return [act.name for act in plan(read_story(DemoSettings(path=folder)), find) if act.step.run]


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(row["step"], row["loss"]) for row in read_metrics(folder / name) if "loss" in row]
        for name in steps(folder)
    }


def test_the_table_gives_every_step_its_seconds_580_in_all():
    story = read_story(DemoSettings())
    assert list(story.seconds) == steps(Path("runs/demo"))
    assert sum(story.seconds.values()) == 580


def test_ones_own_pages_are_read_by_their_size_and_pythons_by_a_mixture(tmp_path):
    for pages, mixture in (([], {"library": 0.55, "pydoc": 0.45}), ([tmp_path], {})):
        story = read_story(DemoSettings(path=tmp_path / "runs", pages=pages))
        assert story.values["mixture"] == mixture
        assert story.values["own_pages"] == ([str(tmp_path)] if pages else None)


def test_seconds_and_fixed_tokens_exclude_each_other():
    for words in (["seconds=300", "pretrain_tokens=50000"], ["seconds=20"], ["pretrain_seconds=100"]):
        with pytest.raises(ConfigError, match=r"either|at least 120|is now `seconds`"):
            config.load(DemoSettings, None, words)


@pytest.mark.slow
def test_a_demo_killed_at_random_moments_ends_like_an_undisturbed_one(small_demo):
    whole, killed = small_demo / "runs/demo", small_demo / "runs/killed"
    assert (whole / "dpo").exists()  # the pages gave enough to ask
    command = [sys.executable, "-m", "herd", "demo", str(killed), "pages=pages", "pretrain_tokens=30000"]
    environment = os.environ | {"HERD_QUIET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    quiet = {"cwd": small_demo, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}

    draw = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command, **quiet)
        time.sleep(6 + draw.random() * read_manifest(whole)["seconds"] / 5)  # 6 s of starting
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_manifest(killed)["state"] == "running"
    subprocess.run(command, check=True, **quiet)

    assert losses(killed) == losses(whole)
    manifest = read_manifest(killed)
    assert manifest["state"] == "finished"
    assert (killed / manifest["checkpoint"] / "model.safetensors").exists()
    assert "<html" in (killed / "report.html").read_text()

    before = {file: file.stat().st_mtime_ns for file in killed.glob("*/run.json")}
    subprocess.run(command, check=True, **quiet)
    assert {file: file.stat().st_mtime_ns for file in killed.glob("*/run.json")} == before  # nothing is done twice

    ask = [sys.executable, "-m", "herd", "chat", str(killed), "json=true", "max_tokens=8"]
    answers = subprocess.run(ask, input="The module\n", capture_output=True, text=True, check=True)
    assert len([json.loads(line) for line in answers.stdout.splitlines()]) == 1


TASK = "ask: generate\ndata: questions.csv\nprompt: '{{ question }}'\nanswer: '{{ answer }}'\nscorer: token_f1\n"
ASKED = [{"role": "user", "content": f"What is {name}?"} for name in ("csv", "json", "os", "re")]
GOOD, BAD = {"role": "assistant", "content": "A module."}, {"role": "assistant", "content": "Cheese."}
ROWS = {
    "talks": [{"messages": [one, GOOD]} for one in ASKED],
    "chats": [{"messages": [one, GOOD]} for one in ASKED],
    "pairs": [{"prompt": [one], "chosen": [GOOD], "rejected": [BAD]} for one in ASKED],
}


@pytest.mark.slow
def test_what_pages_print_about_the_demos_folders_runs_there(small_demo, monkeypatch):
    monkeypatch.chdir(small_demo)
    Path("mine.yaml").write_text(TASK)
    Path("questions.csv").write_text("question,answer\nWhat is csv?,A format.\n")
    Path("faq.csv").write_text("question,reply\nWhat is csv?,A format.\nWhat is re?,A module.\n")
    for name, rows in ROWS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = []
    for page, line in calls():
        words = call(line)
        if not any(word.rpartition("=")[2].startswith("runs/demo") for word in words) or words[0] == "serve":
            continue  # tests/serve serves
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is csv?\n/quit\n"))
        words = [f"{word}-{len(ran)}" if word.startswith("out=") else word for word in words]  # two pages, one folder
        assert cli.main(words) == 0, f"{page}: {line}"
        ran.append(command_of(words))
    assert {"demo pages", "curate", "pretrain", "demo questions", "sft", "dpo", "evaluate", "show", "chat"} <= {*ran}
