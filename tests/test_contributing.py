"""What CONTRIBUTING.md shows as worked examples is applied to a copy of the code and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from herd import cli
from herd.run import read_manifest
from tests.post.models import save_model

ROOT = Path(__file__).resolve().parent.parent
PROSE = (
    "The hive stands at the edge of the wood, and every morning the bees leave it with the first light. They come back "
    "when the sun is low. Nobody who has watched them for a year would say that they are slow to learn where the best "
    "flowers are. One summer the keeper moved the hive by forty steps, and for that day they went to the old place."
)
SHOUTED = (
    "ALL OF THE HONEY IN THIS SHOP HAS TO GO BEFORE THE END OF THE MONTH, AND YOU ARE THE ONE WHO WILL TAKE IT HOME. "
    "We have clover, lime and heather in jars of every size that you could ask for. BRING A FRIEND AND PAY FOR ONE JAR "
    "WHERE YOU WOULD HAVE PAID FOR TWO. NOBODY IN THIS TOWN HAS SEEN SUCH A SALE SINCE THE SHOP WAS OPENED."
)


def shown(title: str, language: str) -> str:
    """The block of a language under a heading of the page."""
    _, _, section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"\n## {title}")
    found = re.search(rf"```{language}\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert found, f"no {language} under {title}"
    return found[1]


def changed(folder: Path, diff: str) -> Path:
    """A copy of the code with a shown diff applied."""
    for name in ("herd", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    patch = ["git", "apply", "-C1", "-"]
    done = subprocess.run(patch, cwd=folder, input=diff, text=True, capture_output=True, env=_apart(folder))
    assert done.returncode == 0, done.stderr
    return folder


def ran(code: Path, *words: str) -> str:
    """What the changed command line prints."""
    command = [sys.executable, "-m", "herd", *words]
    done = subprocess.run(command, cwd=code, text=True, capture_output=True, env=_apart(code))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _apart(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}


@pytest.mark.parametrize(
    ("title", "language"), [("A filter", "diff"), ("An evaluation", "yaml"), ("An objective", "diff")]
)
def test_each_example_is_at_most_sixty_lines(title, language):
    assert 4 < shown(title, language).count("\n") <= 60


def test_the_shown_filter_drops_a_page_and_says_why(tmp_path):
    code = changed(tmp_path / "code", shown("A filter", "diff"))
    rows = [{"url": "http://a.org/1", "text": PROSE}, {"url": "http://b.org/2", "text": SHOUTED}]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran(code, "curate", f"pages=[{tmp_path / 'pages.jsonl'}]", f"out={tmp_path / 'run'}")
    found = pq.read_table(sorted((tmp_path / "run").rglob("*.parquet"))).to_pylist()
    assert {row["url"]: row["drop"] for row in found} == {"http://a.org/1": None, "http://b.org/2": "shouted_words"}


def test_the_shown_evaluation_scores_a_model(tmp_path):
    (tmp_path / "mine.csv").write_text(shown("An evaluation", "csv"))
    (tmp_path / "mine.yaml").write_text(shown("An evaluation", "yaml"))
    model, task = save_model(tmp_path / "model"), tmp_path / "mine.yaml"
    assert cli.main(["evaluate", str(model), f"tasks={task}", f"out={tmp_path / 'run'}"]) == 0
    scores = [json.loads(line) for line in (tmp_path / "run/scores.jsonl").read_text().splitlines()]
    assert {row["n"] for row in scores} == {2} and all(0 <= row["value"] <= 1 for row in scores)


def test_the_shown_objective_trains_a_model(tmp_path):
    code, model = changed(tmp_path / "code", shown("An objective", "diff")), save_model(tmp_path / "model")
    rows = [{"prompt": "What does open do?", "answer": "Open the thing with care."}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [f"checkpoint={model}", f"conversations=[{tmp_path / 'rows.jsonl'}]", f"out={tmp_path / 'run'}"]
    sizes = [
        "batch.tokens=64",
        "batch.row_tokens=64",
        "batch.micro_tokens=64",
        "optimizer.learning_rate=1e-2",
        "compile=off",
    ]
    ran(code, "focal", *places, *sizes)
    figures = read_manifest(tmp_path / "run")["figures"]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] and figures["nll"] > 0
    assert (tmp_path / "run/checkpoint/model.safetensors").is_file()
    assert "gamma" in ran(code, "focal", "--help")
    assert len(ran(code, "--help").splitlines()) <= 40
