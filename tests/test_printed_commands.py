"""Every command that a page prints is understood, and the README's own chain runs on a stranger's pages.

Those on the demo's folders run in tests/stages/test_demo.py, where there is a demo.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from herd import cli, config, stages

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
STORY = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/stories.md").read_text(encoding="utf-8"), re.DOTALL)[0]
READERS_OWN = {"rules.yaml": "rules: {heuristics: {enabled: false}}\n", "mine.yaml": STORY, "story.yaml": STORY}
"""Recipes that the reader brings, as the page around them says; `recipe.yaml` is the demo's of the same command."""

_CALL = re.compile(r"(?:[A-Z_]+=\S+ |echo [^|]*\| |torchrun .*-m )?(?:\.venv/bin/)?herd ")
_SETTINGS_OF_A_STEP = re.compile(r"^runs/demo/([\w-]+)/settings\.yaml$")
_IN_A_SENTENCE = re.compile(r"`(?:\.venv/bin/)?herd ([a-z][^`]*)`")
_INSTALL = re.compile(r"pip install '?([\w.\[\]-]+)")


def printed_lines(text: str) -> list[str]:
    """The lines of a page's fenced and indented blocks, those that end with a backslash joined."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            if lines and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1] + line.strip()
            else:
                lines.append(line.strip())
    return lines


def call(line: str) -> list[str] | None:
    """The words after `herd` of a line that gives it something to do, or None."""
    line = line.removeprefix("$ ")
    if not _CALL.match(line):
        return None
    words = shlex.split(line, comments=True)
    start = next(at for at, word in enumerate(words) if word.rpartition("/")[2] == "herd")
    words = words[start + 1 :]
    return words[: words.index(">")] if ">" in words else words


def calls() -> list[tuple[str, str]]:
    """Every line of every page that calls `herd`."""
    texts = ((page.name, page.read_text(encoding="utf-8")) for page in PAGES)
    return [(name, line) for name, text in texts for line in printed_lines(text) if call(line)]


def command_of(words: list[str]) -> str:
    """The command that the words begin with; a member of a family takes two."""
    command = " ".join(words[:2]) if " ".join(words[:2]) in cli.commands() else words[0]
    assert command in cli.commands(), f"no command `{' '.join(words)}`"
    return command


def understand(words: list[str], yours: Path) -> object:
    """The settings that the command line would run with; every fault is a `ConfigError` or an `AssertionError`."""
    command = command_of(words)
    known = {name: str(yours / name) for name in READERS_OWN} | {"recipe.yaml": f"recipes/demo/{command}.yaml"}
    rest = [known.get(word, word) for word in words[len(command.split()) :]]
    cls = stages.settings_of(command)
    rest = [_SETTINGS_OF_A_STEP.sub(r"recipes/demo/\1.yaml", word) for word in rest]
    recipe, overrides = cli.sort_words(command, cls, rest)
    assert recipe is None or recipe.exists(), f"no recipe {recipe}"
    return config.load(cls, recipe, overrides)


@pytest.mark.parametrize(("page", "line"), calls(), ids=lambda text: text.split("  ")[0])
def test_a_printed_command_is_understood(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, text in READERS_OWN.items():
        (tmp_path / name).write_text(text)
    understand(call(line), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_in_a_sentence_exists_and_its_settings_too(page):
    for text in _IN_A_SENTENCE.findall(page.read_text(encoding="utf-8")):
        words = text.split()
        command = command_of(words)
        known = {setting.name for setting in config.describe(stages.settings_of(command))}
        groups = {name[:at] for name in known for at in range(len(name)) if name[at] == "."}
        for word in words[len(command.split()) :]:
            name = word.removeprefix("--").partition("=")[0].replace("-", "_")
            if "=" in word or word.startswith("--"):
                assert name in known | groups | {"help", "schema"}, f"{page.name}: `herd {text}` has no {name}"


def test_what_pages_and_messages_say_to_install_is_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for names in extras.values() for one in names)]
    known = {re.split(r"[>=;<\[ ]", one)[0] for one in wanted}
    for file in [*PAGES, *(ROOT / "herd").rglob("*.py")]:
        for name in _INSTALL.findall(file.read_text(encoding="utf-8")):
            package, _, extra = name.rstrip(".]").partition("[") if name != "." else (".", "", "")
            assert package in known | {"."}, f"{file.name}: pip install {name}"
            assert not extra or extra in extras, f"{file.name}: pip install {name}"


STRANGER = {
    "crawl.warc.gz": "pages.jsonl",
    "vocab_size=16384": "vocab_size=600",
    "tokens=5e6": "tokens=4e3",
    "runs/mine": "mine",
    "PATH": "mine/pretrain",
    "DIR": "benchmarks",
    "model.gguf": "mine/model.gguf",
}
"""What is not as the README prints it, where its chain runs here: paths and sizes."""

SENTENCES = (
    "The {} of the {} was {} by the {} before winter came.",
    "Nobody who had {} that {} would ask for a {} and be {} again.",
    "It is said that a {} with {} can {} all of the {} in a day.",
    "They have {} to the {}, and from there the {} is not so {}.",
)
"""Prose of a country that is not on the map: what is left open gets a word of its language."""


def write_pages(file: Path, count: int = 40) -> None:
    """Pages of some 140 words, no two alike."""
    draw = random.Random(7)

    def word() -> str:
        return "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(draw.randint(2, 4)))

    with file.open("w") as out:
        for number in range(count):
            sentences = (draw.choice(SENTENCES).format(*(word() for _ in range(4))) for _ in range(12))
            out.write(json.dumps({"url": f"http://a{number}.org/", "text": " ".join(sentences)}) + "\n")


def write_benchmark(folder: Path) -> None:
    """A benchmark of the suite that the README scores: GSM8K's two files, a few rows each."""
    row = {"question": "Ann has 2 hens and buys 3. How many hens has she?", "answer": "2 + 3 = 5\n#### 5"}
    for part, count in {"train": 9, "test": 3}.items():
        file = folder / f"bench-gsm8k/{part}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(count * (json.dumps(row) + "\n").encode()))


def in_the_readme(start: str) -> list[str]:
    """The lines of the README's blocks under a heading."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {start}")[2].partition("\n## ")[0]
    return printed_lines(section)


@pytest.mark.slow
def test_the_readmes_chain_and_its_python_run_on_a_strangers_pages(tmp_path):
    write_pages(tmp_path / "pages.jsonl")
    write_benchmark(tmp_path / "benchmarks")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lines, ran = in_the_readme("Each stage alone"), []
    for line in filter(call, lines):
        words = call(line)
        if words[0] == "story":  # its file is the reader's; tests/stages has stories of their own
            continue
        for printed, here in STRANGER.items():
            words = [re.sub(rf"\b{re.escape(printed)}", here, word) for word in words]
        command = [sys.executable, "-m", "herd", *words]
        asked = "What do bees make?\n/quit\n" if words[0] == "chat" else ""
        done = subprocess.run(command, cwd=tmp_path, env=environment, input=asked, text=True, capture_output=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        ran.append(words[0])
    assert ran[:5] == ["curate", "tokenizer", "pack", "pretrain", "chat"] and {"inspect", "convert"} <= set(ran)
    example = "\n".join(lines[lines.index("import herd") :]).replace("runs/demo", "mine/pretrain")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "mine/model.gguf").is_file() and (tmp_path / "mine/pretrain/checkpoint").is_dir()
