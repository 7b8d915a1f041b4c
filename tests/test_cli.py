from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd import cli
from herd.config import find_recipe

VERBS = [verb for verbs in cli.STORY.values() for verb in verbs]


def test_the_overview_names_every_verb_without_loading_pytorch():
    script = "import sys; from herd.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in result.stdout


def test_the_overview_comes_at_once():
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "herd", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_documents_every_setting(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [
        at for at, line in enumerate(lines) if line.startswith("  ") and (" default " in line or "required)" in line)
    ]
    assert settings
    undocumented = [lines[at] for at in settings if not lines[at + 1].strip()]
    assert undocumented == []


def test_every_stage_file_is_a_verb():
    stages = {file.stem for file in (Path(cli.__file__).parent / "stages").glob("*.py")} - {"__init__"}
    assert stages == set(VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretain"], "no command `pretain`; did you mean `pretrain`?"),
        (["pack", "nowhere.yaml"], "nowhere.yaml: no such recipe"),
        (["pack", "word"], "word: expected a recipe"),
        (["pack", "out=x", "documnets=y"], "no setting `documnets`; did you mean `documents`?"),
        (["chat", "/nowhere/at/all"], "/nowhere/at/all"),
        (["demo", "--pages"], "--pages: expected a value"),
    ],
)
def test_what_is_wrong_is_said_in_one_message_with_status_2(words, message, capsys):
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed


def test_shipped_recipes_are_found_by_name():
    assert find_recipe(Path("demo/pretrain.yaml")).is_file()
