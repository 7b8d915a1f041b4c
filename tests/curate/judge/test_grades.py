"""Rubrics and grades: what the judge is asked, what its answers mean, and that nothing is asked twice."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.curate.judge.grades import Rubric, grade, read_documents, read_rubric, sample_documents
from herd.errors import DataError

RUBRICS = Path(__file__).resolve().parents[3] / "recipes/rubrics"
QUALITY = Rubric(name="quality", text="Judge.", most=5)
KNOWLEDGE = Rubric(name="knowledge", text="Sort.", classes={"science": "atoms", "arts and entertainment": "films"})


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Grade: 4", 0.8),
        ("It is coherent.\n**Grade:** 3.5", 0.7),
        ("grade = 2, then on reflection\nGrade: 5", 1.0),
        ("4", 0.8),
        ("Grade: 9", None),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_grades_are_read_from_answers(answer, found):
    assert QUALITY.read(answer) == (pytest.approx(found) if found is not None else None)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Class: science", "science"),
        ("Class: `Arts and Entertainment`.", "arts and entertainment"),
        ("science", "science"),
        ("This is clearly about science, I think.", "science"),
        ("science or arts and entertainment", None),
        ("Class: cooking", None),
    ],
)
def test_classes_are_read_from_answers(answer, found):
    assert KNOWLEDGE.read(answer) == found


def test_prompts_show_the_rubric_the_classes_and_the_document():
    prompt = QUALITY.prompt("A page." * 5000, characters=1000)
    assert prompt.startswith("Judge.") and "[...]" in prompt and "Grade: <0 to 5>" in prompt and len(prompt) < 1300
    assert "- science: atoms" in KNOWLEDGE.prompt("x") and "Class: <name>" in KNOWLEDGE.prompt("x")


@pytest.mark.parametrize("name", ["quality", "code", "reasoning", "knowledge"])
def test_the_shipped_rubrics_can_be_read(name):
    rubric = read_rubric(RUBRICS / f"{name}.yaml")
    assert rubric.name == name and len(rubric.prompt("x")) > 200 and bool(rubric.classes) == (name == "knowledge")


def test_what_is_no_rubric_is_refused(tmp_path):
    for content, message in (("name: x", "`text`"), ("- a", "not a rubric"), ("a: [", "cannot be read")):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(DataError, match=message):
            read_rubric(tmp_path / "r.yaml")


def test_a_killed_run_asks_only_for_what_is_missing(tmp_path):
    documents = [{"id": str(i), "text": f"page {i}"} for i in range(150)]
    asked = []

    def ask(prompts):
        asked.extend(prompts)
        if len(asked) > 100:
            raise KeyboardInterrupt
        return ["Grade: 3"] * len(prompts)

    with pytest.raises(KeyboardInterrupt):
        grade(documents, QUALITY, ask, tmp_path / "grades.jsonl")
    with open(tmp_path / "grades.jsonl", "a") as file:
        file.write('{"id": "torn')
    asked.clear()
    rows = grade(
        documents,
        QUALITY,
        lambda prompts: asked.extend(prompts) or ["Grade: 1"] * len(prompts),
        tmp_path / "grades.jsonl",
    )
    assert len(asked) == 86 and [row["id"] for row in rows] == [d["id"] for d in documents]
    assert {row["grade"] for row in rows[:64]} == {0.6} and {row["grade"] for row in rows[64:]} == {0.2}
    assert len((tmp_path / "grades.jsonl").read_text().splitlines()) == 150


def test_a_sample_depends_on_the_documents_alone(tmp_path):
    rows = [{"id": str(i), "url": "u", "text": f"page {i}", "drop": "x" if i % 2 else None} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "b.parquet")
    one = sample_documents([tmp_path / "a.parquet"], 10)
    assert one == sample_documents([tmp_path / "b.parquet"], 10) and len(one) == 10
    assert all(int(document["id"]) % 2 == 0 for document in one)
    assert (
        sample_documents([tmp_path / "a.parquet"], 5)
        == one[:5]
        != sample_documents([tmp_path / "a.parquet"], 5, seed=1)
    )
    assert len(sample_documents([tmp_path / "a.parquet"], 1000)) == 50


def test_any_pages_can_be_sampled(tmp_path):
    (tmp_path / "a.html").write_text("<p>The bees leave the hive in the morning and come back.</p>")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Some text.", "url": "http://a.org"}) + "\n")
    assert sorted(document["text"][:4] for document in read_documents([tmp_path])) == ["Some", "The "]
