"""Every shipped task: it reads its data, its right answers earn all, and others nothing."""

import gzip
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from herd.evals.asking import graded, main_metric
from herd.evals.task import items_of, load_task, missing
from tests.evals.published import FILES

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "evals"
MADE_HERE = ("suites", "long", "steer", "languages", "safety")  # no published benchmarks with right answers
TASKS = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name not in MADE_HERE)
ELSEWHERE = [
    path for path in TASKS if not str(load_task(path, None).data.relative_to(path.parent)).startswith("bench-")
]


def right_answer(task, item):
    """What a model that knows the answer would say."""
    if task.scorer == "calls":
        return calls(item)
    if task.scorer == "program":
        return f"```python\n{item.right[0]}\n```" if task.chat is None else item.right[0]
    if task.scorer == "letter" and not task.pattern:
        return item.right[0]
    if task.pattern and "best answer" in task.pattern:
        return f"Because. The best answer is {item.right[0]}."
    return f"So the answer is {item.right[0]}." if task.pattern else item.right[0]


def calls(item):
    """The expected calls in Python's form, with the first value that is allowed for each argument."""
    found = []
    for wanted in item.row.get("ground_truth") or []:
        (name, arguments), given = next(iter(wanted.items())), []
        for argument, values in arguments.items():
            if values and values[0] != "":
                given.append(f"{argument}={plainly(values[0])!r}")
        found.append(f"{name}({', '.join(given)})")
    return f"[{', '.join(found)}]"


def plainly(value):
    """A value whose inner fields are still lists of what is allowed."""
    if isinstance(value, dict):
        return {key: plainly(inner[0] if isinstance(inner, list) else inner) for key, inner in value.items()}
    return [plainly(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("file", TASKS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_shipped_task_makes_prompts_of_its_rows_and_knows_its_right_answers(file, shared_data):
    task = load_task(file, shared_data, limit=12)
    assert task.source, "where the data comes from"
    if missing(task):
        pytest.skip(missing(task))
    items = items_of(task)
    assert items
    for item in items:
        for chat in (False, True):
            prompt = item.prompt(task, chat)
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            assert text.strip() or item.before
        assert (
            (len(item.choices) > 1 and item.rights) if task.ask == "choices" else item.right or task.scorer == "calls"
        )
    if task.ask == "generate" and task.scorer not in ("ifeval",) and not task.services:
        own = [item for item in items if task.scorer != "calls" or item.row.get("ground_truth")][:6]
        if own:
            told = graded(task, own, [right_answer(task, item) for item in own])
            wrongly = sum(one["scores"][main_metric(task)] < 1 for one in told)
            assert wrongly <= (task.scorer == "calls"), told  # a few published answers contradict themselves
            wrong = graded(task, own, ["I would rather not say [no(such=1)]"] * len(own))
            assert sum(one["scores"][main_metric(task)] for one in wrong) == 0, wrong


def test_suites_name_shipped_tasks():
    for suite in (RECIPES / "suites").glob("*.yaml"):
        for name in yaml.safe_load(suite.read_text())["tasks"]:
            assert (RECIPES / f"{name}.yaml").exists(), name


def test_winogrande_scores_the_end_of_the_sentence_after_each_name(shared_data):
    task = replace(load_task(RECIPES / "winogrande.yaml", shared_data), shots=1, limit=2)
    item = items_of(task)[0]
    prompt = item.prompt(task, False)
    assert isinstance(prompt, str)
    assert prompt.endswith("\n\n")
    assert "_" not in prompt
    assert item.before[0] != item.before[1]
    assert item.choices[0] == item.choices[1] == item.row["question"].split("_")[1]


def test_a_limit_is_spread_over_the_parts_of_a_benchmark(shared_data):
    task = load_task(RECIPES / "instruct" / "mgsm.yaml", shared_data, limit=33)
    kinds = [item.kind for item in items_of(task)]
    assert {kinds.count(kind) for kind in kinds} == {3}
    assert len(set(kinds)) == 11


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A data folder as somebody has it who fetched the benchmarks that are not here."""
    folder = tmp_path_factory.mktemp("published")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


@pytest.mark.parametrize("file", ELSEWHERE, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_task_without_data_here_reads_the_published_format(file, published):
    task = load_task(file, published)
    if why := missing(task):
        assert "multipl-e" in file.name, why  # no php, C# or TypeScript here
        pytest.skip(why)
    items = items_of(task)
    assert len(items) >= 5
    for item in items:
        prompt = item.prompt(task, task.ask == "generate")
        assert (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip()
    if task.ask == "choices":
        assert all(item.rights for item in items)
    else:
        told = graded(task, items, [right_answer(task, item) for item in items])
        assert all(one["scores"][main_metric(task)] == 1 for one in told), told
        wrong = graded(task, items, ["I would rather not say [no(such=1)]"] * len(items))
        assert sum(one["scores"][main_metric(task)] for one in wrong) < 0.5, wrong


def test_a_task_whose_data_is_absent_says_which_file_of_which_source_it_wants(tmp_path):
    for file in ELSEWHERE:
        told = missing(load_task(file, tmp_path))
        task = load_task(file, tmp_path)
        assert task.source in told
        assert str(tmp_path) in told


def test_the_robustness_variants_ask_the_same_questions_with_the_same_right_answers(shared_data):
    plain = items_of(load_task(RECIPES / "mmlu.yaml", shared_data, limit=20))
    variants = sorted((RECIPES / "robustness").glob("*.yaml"))
    assert len(variants) == 10
    for file in variants:
        task = load_task(file, shared_data, limit=20)
        for item, other in zip(items_of(task), plain, strict=True):
            right = other.row["choices"]["ABCD".index(other.row["answer"])]
            label = item.choices[item.best]
            assert re.search(rf"(?m)(^|[( ]){re.escape(label)}[.)] {re.escape(right)}", item.text), (
                file.name,
                item.text,
            )


def test_no_task_shows_figures_that_were_published_for_another():
    for file in TASKS:
        if load_task(file, None).published:
            assert "\npublished: {" in file.read_text(), file
