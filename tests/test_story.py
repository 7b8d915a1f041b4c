"""Stories: grids, rounds and gates over real stages, and every fault before the first step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from herd import cli, config
from herd.data.shards import ShardWriter
from herd.errors import ConfigError, DataError
from herd.gate import Gate
from herd.run import read_manifest, read_metrics
from herd.stages import story as verb
from herd.story import StorySettings
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer

TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = Tokenizer.train([TEXT * 3], 540)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for side, count in (("train", 40), ("heldout", 3)):
        (folder / "shards" / side).mkdir(parents=True)
        writer = ShardWriter(folder / "shards" / side, "code", 0, tokenizer=tokenizer.fingerprint)
        for number in range(count):
            text = TEXT.replace("1", str(number))
            writer.add(tokenizer.encode(text, bos=True, eos=True), num_bytes=len(text.encode()))
        writer.close()
    return folder


def tiny(corpus: Path, **more) -> dict:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2}
    places = {"shards": str(corpus / "shards"), "tokenizer": str(corpus / "tokenizer")}
    rows = {"row_tokens": 64, "tokens": 256, "micro_tokens": 256}
    return places | {"model": shape, "batch": rows, "dtype": "fp32", "tokens": 1024} | more


def written(folder: Path, steps: list, **more) -> Path:
    file = folder / "story.yaml"
    whole = {"out": str(folder / "out"), "steps": steps} | more
    file.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return file


def tell(folder: Path, steps: list, *words: str, **more) -> Path:
    return verb.run(config.load(StorySettings, written(folder, steps, **more), words))


def grid(corpus: Path, tokens: object = 1024) -> dict:
    settings = tiny(corpus, tokens=tokens, optimizer={"learning_rate": "${rate}"})
    settings["model"]["hidden_size"] = "${width}"
    axes = {"width": [16, 32], "rate": {"slow": 1e-4, "quick": 1e-2}}
    return {"name": "size", "run": "pretrain", "grid": axes, "settings": settings}


def test_a_grid_has_a_readable_run_folder_for_each_cell_and_a_gate_over_all(corpus, tmp_path, capsys):
    steps = [
        grid(corpus, "${tokens}"),
        {"name": "learned", "go_on_if": "min(size.loss) < max(size.loss) and mean(size.tokens) >= 1024"},
        {
            "name": "after",
            "run": "average",
            "settings": {"checkpoints": ["${story}/size-width=32-rate=quick"], "last": 1},
        },
    ]
    out = tell(tmp_path, steps, values={"tokens": 1024})
    cells = {f"size-width={width}-rate={rate}" for width in (16, 32) for rate in ("slow", "quick")}
    assert {path.parent.name for path in out.glob("*/run.json")} == {*cells, "after"}
    widths = [read_manifest(out / name)["settings"]["model"]["hidden_size"] for name in sorted(cells)]
    assert widths == [16, 16, 32, 32]
    page = (out / "report.html").read_text()
    assert all(name in page for name in cells)

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/run.json")}
    assert cli.main(["story", str(tmp_path / "story.yaml")]) == 0  # nothing is done twice
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/run.json")} == before


def rounds(corpus: Path, gate: str, otherwise: object, count: int = 2) -> list:
    train = {"name": "train", "run": "pretrain", "settings": tiny(corpus, checkpoint="${previous.train}")}
    del train["settings"]["model"]
    train["first"] = {"checkpoint": "${base}"}
    mean = {"name": "mean", "run": "average", "settings": {"checkpoints": ["${more.train}"], "last": 1}}
    return [
        {"name": "base", "run": "pretrain", "settings": tiny(corpus)},
        {
            "name": "more",
            "rounds": count,
            "steps": [train, {"name": "gains", "go_on_if": gate, "otherwise": otherwise}],
        },
        mean,
    ]


def test_a_round_goes_on_from_the_one_before_and_one_that_does_not_gain_is_not_kept(corpus, tmp_path):
    never = "train.heldout_bits_per_byte < previous.train.heldout_bits_per_byte - 100"
    out = tell(tmp_path, rounds(corpus, never, "leave", count=3))
    ran = {path.parent.name for path in out.glob("*/run.json")}
    assert ran == {"base", "more-1-train", "more-2-train", "mean"}
    inputs = json.loads((out / "more-2-train" / "inputs.json").read_text())
    assert "more-1-train" in json.dumps(inputs["checkpoint"])
    assert "more-1-train" in json.dumps(json.loads((out / "mean" / "inputs.json").read_text()))


def test_a_gate_stops_with_the_reason_or_takes_another_ending(corpus, tmp_path):
    with pytest.raises(DataError, match=r"stops at `more-1-gains`: train.loss < 0.001 does not hold \(.* < 0.001"):
        tell(tmp_path, rounds(corpus, "train.loss < 0.001", "stop"))
    assert (tmp_path / "out" / "report.html").exists()
    ending = [{"name": "mean", "run": "average", "settings": {"checkpoints": ["${train}"], "last": 1}}]
    out = tell(tmp_path, rounds(corpus, "train.loss < 0.001", ending))  # the same folder goes on
    assert "does not hold" in read_manifest(out)["figures"]["ended"]
    assert {path.parent.name for path in out.glob("more-*/run.json")} == {"more-1-train", "more-1-mean"}


def test_a_finished_story_takes_more_steps_even_after_one_of_them_stopped_it(corpus, tmp_path):
    base = {"name": "base", "run": "pretrain", "settings": tiny(corpus)}
    mean = {"name": "mean", "run": "average", "settings": {"checkpoints": ["${base}"], "last": 1}}
    out = tell(tmp_path, [base])
    with pytest.raises(DataError, match="stops at `good`"):
        tell(tmp_path, [base, mean, {"name": "good", "go_on_if": "base.loss < 0"}])
    assert read_manifest(out)["state"] == "running"
    tell(tmp_path, [base, mean, {"name": "good", "go_on_if": "base.loss > 0"}], values={"axis": {"one": 1}})
    tell(tmp_path, [base, mean, {"name": "good", "go_on_if": "base.loss > 0"}], values={"axis": {"two": 2}})
    assert read_manifest(out)["figures"]["steps"] == 2


def test_a_killed_story_continues(corpus, tmp_path):
    command = [sys.executable, "-m", "herd", "story", str(written(tmp_path, [grid(corpus)]))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"HERD_QUIET": "1"}}
    process = subprocess.Popen(command, **quiet)
    second = tmp_path / "out" / "size-width=16-rate=quick"
    while process.poll() is None and not second.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list((tmp_path / "out").glob("*/run.json"))) < 4
    subprocess.run(command, check=True, **quiet)
    whole = tell(tmp_path / "whole", [grid(corpus)]) if (tmp_path / "whole").mkdir() is None else None
    for cell in whole.glob("size-*"):
        ours, theirs = read_metrics(tmp_path / "out" / cell.name), read_metrics(cell)
        assert [row["loss"] for row in ours if "loss" in row] == [row["loss"] for row in theirs if "loss" in row]


def test_every_fault_of_every_step_is_told_before_anything_runs(corpus, tmp_path):
    steps = [
        {"name": "one", "run": "pretrian"},
        {"name": "two", "run": "pretrain", "settings": tiny(corpus, tokns=5, checkpoint="${tow}")},
        {"name": "a", "run": "average", "settings": {"checkpoints": ["${b}"]}},
        {"name": "b", "run": "average", "settings": {"checkpoints": ["${a}/checkpoint"]}},
        {"name": "talk", "run": "chat"},
        {"name": "two", "run": "average"},
        {"name": "gate", "go_on_if": "b.loss ~ 3"},
        {"name": "gate2", "go_on_if": "c.loss < 3", "otherwise": "leave"},
        {
            "name": "r",
            "rounds": 2,
            "steps": [{"name": "s", "run": "average", "settings": {"checkpoints": ["${previous.s}"]}}],
        },
    ]
    with pytest.raises(ConfigError) as fault:
        tell(tmp_path, steps)
    wanted = ["did you mean `pretrain`", "did you mean `tokens`", "no step, value or axis `tow`", "a -> b -> a"]
    wanted += ["writes no run folder", "name is taken", "`b.loss ~ 3`", "axis `c`", "leaves rounds", "first round"]
    assert [text for text in wanted if text not in str(fault.value)] == []
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_plan_and_runs_nothing(corpus, tmp_path, capsys):
    tell(tmp_path, [grid(corpus), {"name": "ok", "go_on_if": "min(size.loss) < 1"}], "dry_run=true")
    said = capsys.readouterr()
    assert "size-width=16-rate=slow: herd pretrain (to do)" in said.out + said.err
    assert not (tmp_path / "out").exists()


def test_a_gate_compares_and_calculates_nothing_else():
    figures = {"new": [{"f1": 0.9, "n": 3}], "grid": [{"f1": 0.1}, {"f1": 0.5}], "bad": [{"f1": float("nan")}]}
    for text, holds in (
        ("new.f1 > max(grid.f1) + 0.3", True),
        ("new.f1 > 0.5 and new.n == 4", False),
        ("bad.f1 != 1", False),
        ("mean(grid.f1) * 2 <= 0.6", True),
    ):
        assert Gate.read(text, figures).judge(figures.__getitem__)[0] is holds, text
    assert Gate.read("new.n >= ${least}", figures | {"least": 3.0}).judge(figures.__getitem__)[0] is True
    with pytest.raises(ConfigError, match="neither a number nor STEP"):
        Gate.read("new.n >= ${lest}", figures | {"least": 3.0})
    with pytest.raises(DataError, match="2 cells"):
        Gate.read("grid.f1 < 1", figures).judge(figures.__getitem__)
    with pytest.raises(DataError, match="no figure `f2`"):
        Gate.read("new.f2 < 1", figures).judge(figures.__getitem__)
    for text in ("new.f1", "__import__('os').f1 < 1", "new.f1 < 1 + 2 + 3"):
        with pytest.raises(ConfigError):
            Gate.read(text, figures)


def test_a_longer_context_that_costs_short_text_stops_the_story_with_the_reason(corpus, tmp_path):
    """The gates of recipes/scaling/extend-context.yaml, with a stage that is planted to fail."""
    recipe = config.load(StorySettings, config.find_recipe(Path("scaling/extend-context.yaml")))
    gate = next(step.go_on_if for step in recipe.steps if step.name == "holds-256")
    (tmp_path / "short.yaml").write_text(
        f"name: short\nask: bits_per_byte\ndata: {corpus}/shards\ncontext_tokens: 64\n"
    )
    watch = {"tasks": [str(tmp_path / "short.yaml")], "shares": [1.0]}
    before = {"name": "before", "run": "pretrain", "settings": tiny(corpus, watch=watch)}
    longer = tiny(corpus, watch=watch, checkpoint="${before}", optimizer={"learning_rate": 3.0}, long_share=0.5)
    longer["batch"] = longer["batch"] | {"row_tokens": 32}
    del longer["model"]
    steps = [
        before,
        {"name": "to-256", "run": "pretrain", "settings": longer},
        {"name": "holds-256", "go_on_if": gate.split(" and ")[0]},
    ]
    with pytest.raises(DataError, match=r"stops at `holds-256`: to-256.short_bits_per_byte <= .* does not hold \("):
        tell(tmp_path, steps, values={"may_cost": 0.01})
