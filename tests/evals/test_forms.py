"""The same rows in the forms in which others publish them, and files with another ending."""

from pathlib import Path

import pytest
import yaml

from herd.errors import DataError
from herd.evals.rows import rows_of
from herd.evals.task import items_of, load_task, missing
from tests.evals.otherwise import PUBLISHED, put

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "evals"


@pytest.mark.parametrize(
    ("name", "files", "shown", "right"), PUBLISHED, ids=lambda one: one if isinstance(one, str) else ""
)
def test_the_rows_of_another_published_form_make_the_same_prompts(tmp_path, name, files, shown, right):
    put(tmp_path, files)
    task = load_task(RECIPES / f"{name}.yaml", tmp_path)
    assert not missing(task)
    item = items_of(task)[0]
    prompt = item.prompt(task, False)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    assert shown in text + "".join(item.before), text
    assert item.right == right or name == "instruct/bfcl"
    if name == "instruct/bfcl":
        rows = {one.kind: one.row["ground_truth"] for one in items_of(task)}
        assert rows == {"irrelevance": [], "parallel": [{"add": {"a": [1]}}]}


def test_a_task_that_changes_anothers_data_does_not_read_the_others_forms():
    for file in RECIPES.rglob("*.yaml"):
        own = yaml.safe_load(file.read_text())
        base = own.get("base")
        if base and "data" in own and yaml.safe_load((file.parent / base).read_text()).get("forms"):
            assert "forms" in own, file


def test_unquoted_tables_keep_their_quotes_and_quoted_ones_lose_them(tmp_path):
    (tmp_path / "a.tsv").write_text('s\tn\n"Up" he said\t1\n"He said ""no"""\t2\nan "odd one\t3\n')
    assert [row["s"] for row in rows_of(tmp_path / "a.tsv")] == ['"Up" he said', 'He said "no"', 'an "odd one']
    (tmp_path / "b.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="two columns are called 'a'"):
        list(rows_of(tmp_path / "b.csv"))
