"""Every figure of a card stands in the file and under the key that it names."""

import json
import re

import pytest

from herd.errors import CheckpointError
from herd.stages import card


def write(folder, stage, figures, seconds, **more):
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"format": 1, "stage": stage, "state": "finished", "seconds": seconds, "figures": figures} | more
    (folder / "run.json").write_text(json.dumps(manifest | {"finished": f"2026-01-01T00:00:{int(seconds):02}Z"}))
    (folder / "inputs.json").write_text(json.dumps({"pages": {"path": ["a", "b"], "sha256": "c" * 64}}))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "story"
    write(root, "story", {}, 50.0, checkpoint="sft/checkpoint")
    (root / "environment.json").write_text(json.dumps({"cores": 2, "processor": "P", "packages": {"torch": "2.11"}}))
    write(root / "curate", "curate", {"documents": 867, "kinds": {"news": 3}}, 12.5)
    write(root / "pretrain", "pretrain", {"loss": 4.1208, "flops": 3.26e13}, 20.25)
    write(root / "sft", "sft", {"loss": 1.5}, 7.0)
    (root / "pretrain" / "sources.json").write_text(json.dumps({"sources": {"web": {"tokens": 1024, "share": 0.5}}}))
    (root / "sft" / "checkpoint").mkdir()
    (root / "sft" / "checkpoint" / "config.json").write_text(json.dumps({"hidden_size": 256, "model_type": "llama"}))
    return root


def at(values, key):
    if not key:
        return values
    if isinstance(values, list):
        head, _, rest = key.partition(".")
        return at(values[int(head)], rest)
    name = max((name for name in values if key == name or key.startswith(f"{name}.")), key=len)
    return at(values[name], key[len(name) + 1 :])


def test_every_figure_is_where_it_says(root):
    out = card.run(card.CardSettings(path=root))
    rows = []
    for name in ("MODEL_CARD.md", "DATA_CARD.md"):
        rows += re.findall(r"^\| (.*?) \| (.*?) \| `(.*?)`: `(.*?)` \|$", (out / name).read_text(), re.M)
    exact = [row for row in rows if "estimated" not in row[0]]
    assert len(rows) - len(exact) == 2 and len(exact) > 15
    for _, value, file, key in exact:
        found = at(json.loads((root / file).read_text()), key)
        assert value == (json.dumps(found) if isinstance(found, int | float) else str(found)), (file, key)
    told = {name for name, *_ in exact}
    assert {"loss", "flops", "documents", "kinds.news", "sources.web.tokens", "hidden_size"} <= told


def test_energy_is_estimated_and_said_so(root, tmp_path):
    text = (card.run(card.CardSettings(path=root)) / "MODEL_CARD.md").read_text()
    assert "Estimated, not measured" in text and f"| {50.0 * 20 / 3.6e6} |" in text
    card.run(card.CardSettings(path=root, out=tmp_path / "own", watts=300.0, grams_per_kwh=0.0))
    own = json.loads((tmp_path / "own" / "card.json").read_text())["model"][-1]["facts"]
    assert own[1]["value"] == pytest.approx(50 * 300 / 3.6e6) and own[2]["value"] == 0


def test_what_is_not_finished_has_no_card(root):
    manifest = json.loads((root / "sft" / "run.json").read_text())
    (root / "sft" / "run.json").write_text(json.dumps(manifest | {"state": "running"}))
    with pytest.raises(CheckpointError, match="sft: this run is not finished"):
        card.run(card.CardSettings(path=root))
    with pytest.raises(CheckpointError, match="not a run folder"):
        card.run(card.CardSettings(path=root / "sft" / "checkpoint"))
