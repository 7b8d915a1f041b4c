"""Calls over several turns in simulated services: made in the sandbox, judged by the states they lead to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from herd.evals import services
from herd.evals.asking import ask
from herd.evals.task import items_of, load_task, missing
from tests.evals.otherwise import put

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "evals" / "instruct" / "bfcl-turns.yaml"
BOX = """
class Box:
    def _load_scenario(self, scenario, long_context=False):
        self.things = list(scenario.get("things", []))
    def add(self, thing):
        self.things.append(thing)
        return {"things": len(self.things)}
    def wait(self):
        while True: pass
"""
PACKAGE = {
    "bfcl_eval/constants/executable_backend_config.py": "",
    "bfcl_eval/eval_checker/multi_turn_eval/box.py": BOX,
    "bfcl_eval/eval_checker/multi_turn_eval/multi_turn_utils.py": """
import json
from bfcl_eval.eval_checker.multi_turn_eval.box import Box
STATES = {}
def execute_multi_turn_func_call(calls, config, classes, name, entry, long_context=False):
    box = STATES.get((name, entry))
    if box is None:
        box = STATES[name, entry] = Box()
        box._load_scenario(config)
    return [json.dumps(eval("box." + call, {"box": box})) for call in calls], {"Box": box}
""",
    "bfcl_eval/eval_checker/multi_turn_eval/multi_turn_checker.py": """
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call as execute
def multi_turn_checker(turns, truth, entry, category, name):
    for number, (steps, right) in enumerate(zip(turns, truth, strict=True)):
        own = [execute(step, entry["initial_config"], [], name, entry["id"])[1] for step in [[], *steps]][-1]
        theirs = execute(right, entry["initial_config"], [], name + " truth", entry["id"])[1]
        if own["Box"].things != theirs["Box"].things:
            return {"valid": False, "error_message": f"turn {number} differs"}
    return {"valid": True}
""",
}
ROW = {"question": [[{"role": "user", "content": "Add a."}], [], [{"role": "user", "content": "Add c."}]]}
ROW |= {"initial_config": {"things": ["x"]}, "involved_classes": ["Box"], "path": []}
DOCUMENTS = [{"name": "add", "parameters": {}}, {"name": "wait", "parameters": {}}]


class Scripted:
    """Says what it is told to, and keeps what it was asked."""

    speaks_chat = True

    def __init__(self, *answers):
        self.answers, self.seen = {name: list(own) for name, own in answers}, []

    def generate(self, prompts, params):
        self.seen += [[*prompt] for prompt in prompts]
        return [self.answers[prompt[1]["content"]].pop(0) for prompt in prompts]


@pytest.fixture
def data(tmp_path):
    rows, truth = [], []
    for name, first in (("base_0", "Add a."), ("miss_func_0", "Add late."), ("base_1", "Wait.")):
        question = [[{"role": "user", "content": first}], *ROW["question"][1:]]
        missed = {"missed_function": {"1": ["add"]}} if "miss" in name else {}
        question[1] = [] if missed else [{"role": "user", "content": "Add b."}]
        rows.append(ROW | {"id": f"multi_turn_{name}", "question": question, "involved_classes": ["MathAPI"]} | missed)
        own = [["add('a')"], ["add('b')"], ["add(thing='c')"]] if "base" in name else [[], ["add('a')"], ["add('c')"]]
        truth.append({"id": f"multi_turn_{name}", "ground_truth": own})
    names = ("base", "miss_func")
    files = {f"bfcl_eval/data/BFCL_v4_multi_turn_{n}.json": [row for row in rows if n in row["id"]] for n in names}
    files |= {"bfcl_eval/data/possible_answer/BFCL_v4_multi_turn_base.json": truth}
    put(tmp_path, PACKAGE | files | {"bfcl_eval/data/multi_turn_func_doc/math_api.json": DOCUMENTS})
    return tmp_path


def test_calls_are_made_and_told_until_none_is_left_and_states_decide(data, monkeypatch):
    monkeypatch.setattr(services, "LIMITS", replace(services.LIMITS, wall_seconds=3.0, cpu_seconds=1.0))
    task = load_task(RECIPE, data)
    assert not missing(task)
    items = items_of(task)
    assert [item.kind for item in items] == ["multi_turn_base", "multi_turn_base", "multi_turn_miss_func"]
    right = ["[add(thing='a')]", "done", "[add(thing='b')]", "done", "[add(thing='c')]", "done"]
    late = ["I cannot.", *right[:2], *right[4:]]
    subject = Scripted(("Add a.", right), ("Add late.", late), ("Wait.", ["[wait()]", "ok", *right[2:]]))
    found = ask(task, items, subject)
    assert [one["scores"]["calls"] for one in found] == [1.0, 0.0, 1.0], found
    assert json.loads(subject.seen[3][-1]["content"])[0]["content"] == '{"things": 2}', (
        "the result of the first call is told"
    )
    by_last = {talk[-1]["content"]: talk for talk in subject.seen}
    offered = next(text for text in by_last if text.endswith("What about now?"))
    assert json.loads(offered.splitlines()[0])[0]["name"] == "add"
    assert '"add"' not in by_last[offered][0]["content"]


def test_without_the_services_the_task_says_where_they_come_from(data):
    (data / "bfcl_eval" / "eval_checker").rename(data / "away")
    told = missing(load_task(RECIPE, data))
    assert "unpack its wheel" in told or not told  # it may be installed
