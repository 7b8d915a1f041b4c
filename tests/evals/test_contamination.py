"""What a corpus gave away of a benchmark: found, and worth what it is worth."""

import json

import numpy as np
import pytest

from herd import cli
from herd.data.shards import ShardWriter
from herd.evals.contamination import contamination
from tests.post.models import save_model, small_tokenizer


def test_the_gain_is_found_at_the_threshold_that_tells_known_questions_from_new_ones():
    generator = np.random.default_rng(0)
    shares = [0.85] * 100 + [0.15] * 200
    known = (generator.random(100) < 0.9).astype(float)
    new = (generator.random(200) < 0.5).astype(float)
    found = contamination(shares, {"model": [*known, *new]})
    assert found["threshold"] == 0.2
    assert found["contaminated"] == pytest.approx(1 / 3)
    gain = found["gains"]["model"]
    assert gain["value"] == pytest.approx(gain["all"] - gain["clean"])
    assert 0 < gain["low"] < gain["value"] < gain["high"]


def test_where_known_questions_are_answered_no_better_there_is_no_estimate():
    values = (np.random.default_rng(1).random(300) < 0.5).astype(float).tolist()
    found = contamination([0.85] * 100 + [0.15] * 200, {"model": [values[place] for place in range(300)][::-1]})
    assert found["threshold"] is None
    assert found["gains"] == {}


def test_an_evaluation_tells_which_questions_stand_in_the_corpus(tmp_path):
    save_model(tmp_path / "model")
    tokenizer = small_tokenizer()
    writer = ShardWriter(tmp_path / "pack" / "train", "web", 0, tokenizer=tokenizer.fingerprint)
    for number in range(6):
        text = f"What does mod{number}.open do with care? It takes no arguments. a thing no"
        writer.add(tokenizer.encode(text, bos=True, eos=True), num_bytes=len(text))
    writer.close()
    words = [f"path={tmp_path / 'pack'}", f"tokenizer={tmp_path / 'model'}", f"out={tmp_path / 'index'}"]
    assert cli.main(["ngrams", *words]) == 0
    asked = [f"What does mod{number}.open do with care? It takes no arguments." for number in range(6)]
    asked += [f"path {number} mode {number} Reader {number} Which {number} parameters {number}" for number in range(6)]
    rows = [{"q": one, "right": place % 2} for place, one in enumerate(asked)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = 'ask: choices\ndata: mine.jsonl\nprompt: "{{ q }}"\nchoices: ["a thing", "no"]\nanswer: "{{ right }}"\n'
    (tmp_path / "mine.yaml").write_text(task)
    command = ["evaluate", str(tmp_path / "model"), f"tasks={tmp_path / 'mine.yaml'}", f"ngrams={tmp_path / 'index'}"]
    assert cli.main([*command, f"out={tmp_path / 'out'}"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "contamination.jsonl").read_text().splitlines()]
    assert row["task"] == "mine"
    assert 0.3 < row["mean_overlap"] < 0.7  # the six that stand in the corpus
