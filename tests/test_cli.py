from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from herd import cli, renamed, stages
from herd.config import find_recipe, load, settings

VERBS = [verb for verbs in cli.STORY.values() for verb in verbs]
BRIEF = [verb for group in cli.BY_NAME_ONLY for verb in cli.STORY[group]]


def test_the_overview_names_every_verb_without_loading_pytorch():
    script = "import sys; from herd.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0
    for verb in VERBS:
        assert (f"\n  {verb} " in result.stdout) != (verb in BRIEF)
    assert all(f", {verb}" in result.stdout or f": {verb}" in result.stdout for verb in BRIEF)
    full = "the first help screen has 40 lines: move a verb to a group of `cli.BY_NAME_ONLY`"
    assert len(result.stdout.splitlines()) <= 40, full


def test_the_overview_comes_at_once():
    """It loads what Python brings and a handful of modules of ours, however many stages and packages there are."""
    command = [sys.executable, "-X", "importtime", "-m", "herd", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    brought = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert not brought & {"torch", "numpy", "pyarrow", "pydantic", "yaml", "transformers"}
    assert len([name for name in loaded if name.startswith("herd.")]) <= 6


@pytest.mark.parametrize("command", cli.commands())
def test_every_verb_documents_every_setting(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [
        at for at, line in enumerate(lines) if line.startswith("  ") and (" default " in line or "required)" in line)
    ]
    assert settings
    undocumented = [lines[at] for at in settings if not lines[at + 1].strip()]
    assert undocumented == []


def test_every_stage_file_is_a_verb():
    folder = Path(stages.__path__[0])
    files = [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py") if file.stem != "__init__"]
    families = [file.parent.name for file in folder.glob("*/__init__.py")]
    assert {file.parts[0] for file in files} | set(families) == set(VERBS)
    assert {" ".join(file.parts) for file in files} - set(families) == set(cli.commands()) - set(families)


def test_a_stage_that_no_group_names_is_told_apart_from_a_slip(monkeypatch, capsys):
    monkeypatch.setitem(cli.STORY, "Look closer", ("inspect",))
    assert cli.main(["sandbox"]) == cli.USER_ERROR
    assert "sandbox.py exists, but `STORY`" in capsys.readouterr().err
    assert cli.main(["sandbx"]) == cli.USER_ERROR
    assert "exists" not in capsys.readouterr().err


# ---- families --------------------------------------------------------------------------------------------------------

STAGE = '''"""{text}"""

from pathlib import Path
from typing import ClassVar

from herd.config import settings


@settings
class Settings:
    """{text}"""

    path: Path = Path("here")
    """Where."""


def run(settings: Settings) -> None:
    print("{name} ran with", settings.path)
'''


@pytest.fixture
def families(tmp_path, monkeypatch):
    """Two families beside Herd's own stages: `herding` is only its members, `flock` is a stage of its own too."""
    for family, text in (("herding", '"""Herding: dogs at work."""'), ("flock", STAGE)):
        (tmp_path / family).mkdir()
        (tmp_path / family / "__init__.py").write_text(text.format(text="Flock: all of them.", name="flock"))
        for member in ("gather", "drive"):
            text = STAGE.format(text=f"{member.capitalize()}: sheep.", name=f"{family} {member}")
            (tmp_path / family / f"{member}.py").write_text(text)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    monkeypatch.setitem(cli.STORY, "Dogs", ("herding", "flock"))
    yield
    for name in [name for name in sys.modules if name.startswith(("herd.stages.herding", "herd.stages.flock"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("herding gather", "herding gather ran with here"),
        ("herding drive path=there", "herding drive ran with there"),
        ("flock", "flock ran with here"),
        ("flock there", "flock ran with there"),
        ("flock drive there", "flock drive ran with there"),
        ("flock ./drive", "flock ran with drive"),
    ],
)
def test_a_family_runs_the_member_that_its_first_word_names(words, printed, families, capsys):
    assert cli.main(words.split()) == 0
    assert capsys.readouterr().out.strip() == printed


@pytest.mark.parametrize("words", ["herding", "herding --help", "flock --help"])
def test_a_family_lists_its_members(words, families, capsys):
    assert cli.main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "\n  gather         Gather: sheep.\n" in printed and "\n  drive          Drive: sheep.\n" in printed
    assert ("path  (" in printed) == words.startswith("flock")


def test_the_overview_names_the_members_of_a_family_without_importing_it(families, capsys):
    cli.main(["--help"])
    assert "  herding        Herding: dogs at work. Also: drive, gather.\n" in capsys.readouterr().out
    assert "herd.stages.herding" not in sys.modules


@pytest.mark.parametrize("words", ["herding gahter", "gather"])
def test_a_member_that_is_none_is_answered_by_the_nearest(words, families, capsys):
    assert cli.main(words.split()) == 2
    assert "gather`?" in capsys.readouterr().err


# ---- what was renamed ------------------------------------------------------------------------------------------------


def test_a_renamed_verb_is_refused_with_its_new_name(monkeypatch, capsys):
    monkeypatch.setitem(renamed.VERBS, "gather", "herding gather")
    assert cli.main(["gather", "path=x"]) == 2
    assert capsys.readouterr().err == "error: `herd gather` is now `herd herding gather`\n"


def test_a_renamed_setting_is_refused_with_its_new_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(renamed.SETTINGS, "PackSettings", {"texts": "documents", "work.size": "out"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("texts: x\nout: y\ntokenizer: z\n")
    assert cli.main(["pack", str(recipe)]) == 2
    assert f"  {recipe}: `texts` is now `documents`\n" in capsys.readouterr().err


def test_every_renamed_thing_has_a_new_name_that_exists():
    assert {" ".join(new.split()[:2]) for new in renamed.VERBS.values()} <= set(cli.commands())
    assert not set(renamed.VERBS) & set(VERBS)


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


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["curate", "folder"], "pages=folder"),
        (["quantize", "folder"], "checkpoint=folder"),
        (["plan", "8B", "--gpus", "8"], "devices"),
        (["sft", "learning_rate=1e-4"], "optimizer.learning_rate"),
    ],
)
def test_what_was_probably_meant_is_named(words, meant, capsys):
    assert cli.main(words) == 2
    assert f"did you mean `{meant}`" in capsys.readouterr().err


def test_a_bare_text_is_taken_as_it_is(tmp_path, capsys):
    for text in ("Note: [this] is {text}", "12", "# it"):
        words = cli.sort_words("shield", Texts, ["a.index", text])[1]
        assert load(Texts, None, words).text == text


@settings
class Texts:
    """A command that takes a text without a name."""

    bare_words: ClassVar = ("path", "text")

    path: Path
    text: str
