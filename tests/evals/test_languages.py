"""Text, translation, the cache and conversations of several turns, as tasks."""

import json
import math
from pathlib import Path

import pytest

from herd.evals.asking import ask, scores_of
from herd.evals.graders import GRADERS
from herd.evals.subject import Local
from herd.evals.task import Item, Task, items_of, load_task
from tests.post.models import save_model

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "evals"


def written(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_bits_per_byte_of_rows_are_all_bits_by_all_bytes(tmp_path):
    data = written(
        tmp_path, [{"text": "Open the thing with care.", "lang": "en"}, {"text": "mode path " * 9, "lang": "x"}]
    )
    task = Task(ask="text", data=data, answer="{{ text }}", before_answer="", name="bits", kind="{{ lang }}")
    items = items_of(task)
    results = ask(task, items, Local(save_model(tmp_path / "model")))
    score = next(one for one in scores_of(task, items, {"m": results}) if one.task == "bits")
    nats = sum(one["scores"]["nats"] for one in results)
    assert score.metric == "bits_per_byte"
    assert score.value == pytest.approx(nats / math.log(2) / sum(len(item.right[0]) for item in items))


def test_a_translation_in_the_wrong_language_is_told(tmp_path):
    pytest.importorskip("sacrebleu")
    task = Task(ask="generate", data=tmp_path, answer="{{ de }}", output_language="de", scorer="translation")
    right = "Der Pilot wurde als Staffelführer identifiziert und nach Hause geschickt."
    item = Item(number=0, row={"de": right}, text="", examples=(), right=(right,))
    english = "The pilot was identified as the leader of the squadron and sent home."
    good, wrong = GRADERS["translation"](task, [item, item], [right, english])
    assert good["chrf"] == pytest.approx(1)
    assert good["language"] == 1
    assert wrong["language"] == 0
    assert wrong["chrf"] < 0.5


def test_flores_is_asked_both_ways(shared_data):
    for name in ("flores-into-english", "flores-from-english"):
        task = load_task(RECIPES / "languages" / f"{name}.yaml", shared_data, 8)
        for item in items_of(task):
            assert item.right[0] not in item.text
            assert len(item.right[0]) > 10


def test_an_int8_cache_changes_little_and_says_how_much_by_place(tmp_path):
    data = written(tmp_path, [{"text": "Open the thing with care. It takes no arguments. " * 8}])
    task = Task(ask="cache", data=data, prompt="{{ text }}", name="cache")
    (result,) = ask(task, items_of(task), Local(save_model(tmp_path / "model")))
    assert 0 < result["scores"]["kl_nats"] < 0.1
    assert [f"kl {n}/8" in result["scores"] for n in range(1, 9)] == [True] * 8
    assert result["scores"]["same_token"] > 0.9


class Obedient:
    """A subject that keeps to the rule in its first two answers only."""

    speaks_chat = True

    def generate(self, prompts, params):
        return ["all small" if len(prompt) < 6 else "All Small, now" for prompt in prompts]


def test_rules_of_the_system_prompt_are_checked_at_every_turn():
    pytest.importorskip("lm_eval")
    task = load_task(RECIPES / "steer" / "rules.yaml", None)
    items = [item for item in items_of(task) if item.kind == "no_comma"]
    results = ask(task, items, Obedient())
    assert [results[0]["scores"][f"turn {n}"] for n in range(1, 6)] == [1, 1, 0, 0, 0]
    assert results[0]["scores"]["adherence"] == pytest.approx(0.4)
    values = {one.metric: one.value for one in scores_of(task, items, {"m": results}) if one.task == "rules"}
    assert values["turn 2"] == 1
    assert values["turn 3"] == 0
