"""Benchmark questions in documents: found where they stand, not where only their wording does."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.cli import main
from herd.curate.filters.decontaminate import Benchmarks, Contamination, ContaminationReport, read_questions
from herd.errors import DataError

WORDS = [a + b for a in ("ba", "ko", "mi", "ru", "te", "so", "la", "vi") for b in ("n", "r", "st", "l", "m", "d")]


def sentence(seed, length):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(length))


@pytest.fixture
def bench(tmp_path):
    """Twenty long questions that begin with the same wording, and ten short ones."""
    wording = "Which of the following statements about the passage above is true and why is that so? "
    rows = [
        {"id": f"q{i}", "question": wording + sentence(i, 20), "choices": [sentence(500 + i, 3)]} for i in range(20)
    ]
    rows += [{"question": sentence(100 + i, 10)} for i in range(10)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "bench.jsonl", rows


def test_a_question_is_found_whatever_its_case_and_signs(bench):
    found = Benchmarks(Contamination(benchmarks=[bench[0]]))
    question = bench[1][4]["question"]
    text = f"{sentence(900, 50)}. {question.upper().replace(' ', ', ')} {sentence(901, 50)}"
    (hit,) = found.find(text)
    assert (hit.benchmark, hit.row) == ("bench", 5) and len(hit.span.split()) == 13
    assert hit.span in text


def test_wording_that_questions_share_is_no_contamination(bench):
    found = Benchmarks(Contamination(benchmarks=[bench[0]]))
    assert (
        found.find("Which of the following statements about the passage above is true and why is that so? " * 3) == []
    )
    assert found.find(sentence(7777, 500)) == []


def test_what_a_question_quotes_is_no_contamination_and_the_question_with_it_is(tmp_path):
    verse = sentence(40, 30)
    rows = [
        {"question": f"{sentence(41, 9)} “{verse}” {sentence(42, 6)}?"},
        {"passage": f"“{sentence(43, 30)}”"},
        {"question": f"{sentence(44, 9)}?", "answer": f'"{sentence(45, 30)}"'},
    ]
    (tmp_path / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Benchmarks(Contamination(benchmarks=[tmp_path / "law.jsonl"]))
    assert found.find(f"{sentence(50, 20)} {verse} {sentence(51, 20)}") == []
    assert [hit.row for hit in found.find(rows[0]["question"])] == [1]
    assert [hit.row for hit in found.find(sentence(43, 30))] == [2]
    assert found.find(sentence(45, 30)) == [] and [hit.row for hit in found.find(sentence(44, 9))] == [3]


def test_short_questions_need_most_of_their_runs(bench):
    found = Benchmarks(Contamination(benchmarks=[bench[0]]))
    words = bench[1][25]["question"].split()
    assert [hit.row for hit in found.find("x " + " ".join(words) + " y")] == [26]
    assert found.find(" ".join(words[:8])) == []
    assert found.find(" ".join(words[:9])) == [] or found.options.short_share * 3 <= 2
    strict = Benchmarks(Contamination(benchmarks=[bench[0]], short_share=1.0))
    assert strict.find(" ".join(words[:9])) == []


def test_benchmarks_are_read_in_their_usual_forms(tmp_path):
    question = sentence(1, 20)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"deep": [{"question": question}]}) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([{"q": question}]))
    (tmp_path / "c.csv").write_text(f'1,"{question}"\n')
    (tmp_path / "d.txt").write_text(f"one\n\n{question}\n")
    pq.write_table(pa.table({"q": [question]}), tmp_path / "e.parquet")
    for name in ("a.jsonl.gz", "b.json", "c.csv", "d.txt", "e.parquet"):
        found = Benchmarks(Contamination(benchmarks=[tmp_path / name]))
        assert [hit.benchmark for hit in found.find(f"x {question} y")] == [name[0]]
    assert len({question.benchmark for question in read_questions([tmp_path])}) == 1  # a folder is one benchmark


def test_what_is_no_benchmark_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("{broken\n")
    (tmp_path / "b.jsonl").write_text('{"question": "too short"}\n')
    for name, message in (("a.jsonl", "not valid JSONL"), ("b.jsonl", "8 words in a row"), ("c.jsonl", "no such file")):
        with pytest.raises(DataError, match=message):
            Benchmarks(Contamination(benchmarks=[tmp_path / name]))


def test_the_report_counts_questions_and_documents(bench):
    found, report = Benchmarks(Contamination(benchmarks=[bench[0]])), ContaminationReport()
    for i, row in enumerate([bench[1][0], bench[1][0], bench[1][1], {"question": sentence(4444, 40)}]):
        document = {"url": f"http://a.org/{i}", "text": row["question"]}
        report.add(document, found.find(document["text"]))
    table = report.as_dict(found)
    assert (table["documents"], table["contaminated"]) == (4, 3)
    entry = table["benchmarks"]["bench"]
    assert (entry["questions"], entry["searchable"], entry["found"], entry["documents"]) == (30, 30, 2, 3)
    assert entry["examples"][0]["span"] in bench[1][0]["question"]


def test_the_command_writes_the_documents_without_them(bench, tmp_path, capsys):
    rows = [
        {"id": str(i), "url": f"u{i}", "text": sentence(i + 3000, 60), "drop": None, "drop_detail": None}
        for i in range(5)
    ]
    rows[2]["text"] += " " + bench[1][3]["question"]
    types = pa.schema([(name, pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, types), tmp_path / "docs.parquet")
    words = [f"out={tmp_path}/run", f"documents={tmp_path}/docs.parquet", f"benchmarks.benchmarks={bench[0]}"]
    assert main(["decontaminate", *words]) == 0
    written = pq.read_table(tmp_path / "run/documents").to_pylist()
    assert [row["drop"] for row in written] == [None, None, "contaminated", None, None]
    assert written[2]["drop_detail"].startswith("bench, row 4: ")
    assert json.loads((tmp_path / "run/report.json").read_text())["contaminated"] == 1
    assert main(["decontaminate", f"out={tmp_path}/x", f"documents={tmp_path}/docs.parquet"]) == 2
    assert "give the files of questions" in capsys.readouterr().err


def test_one_benchmark_inside_another_is_found(shared_data):
    """AGIEval took over questions of AQuA: those are found, its other tasks are not."""
    found = Benchmarks(Contamination(benchmarks=[shared_data / "bench-aqua/test.jsonl.gz"]))
    with gzip.open(shared_data / "bench-agieval/agieval_en.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    hits = {}
    for row in rows:
        text = " ".join(filter(None, (row.get("passage"), row.get("question"))))
        hits.setdefault(row["task"] == "aqua-rat", []).append(bool(found.find(text)))
    assert sum(hits[True]) > 0.9 * len(hits[True]) > 20
    assert sum(hits[False]) < 0.01 * len(hits[False])


@pytest.mark.parametrize("content", [b"[" * 100_000, b'["a", ', b"\x00\xff"])
def test_a_damaged_benchmark_is_one_sentence(tmp_path, content):
    for name in ("a.json", "a.jsonl", "a.parquet", "a.xlsx"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            list(read_questions([tmp_path / name]))


def test_json_over_several_lines_and_long_csv_fields_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"question": sentence(1, 9)}]}, indent=1))
    (tmp_path / "b.csv").write_text("question\n" + '"' + "bee " * 50_000 + '"')
    assert [question.texts for question in read_questions([tmp_path / "a.json"])] == [(sentence(1, 9),)]
    assert len(list(read_questions([tmp_path / "b.csv"]))) == 2


def test_the_command_leaves_common_property_out(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HERD_QUIET", "")
    question = bench[1][4]["question"]
    rows = [
        {"id": str(i), "url": f"u{i}", "text": f"{sentence(2000 + i, 30)} {question}", "drop": None} for i in range(30)
    ]
    types = pa.schema([(name, pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, types), tmp_path / "docs.parquet")
    words = [f"documents={tmp_path}/docs.parquet", f"benchmarks.benchmarks={bench[0]}", "write=false"]
    assert main(["decontaminate", f"out={tmp_path}/few", *words, "benchmarks.most_documents=20"]) == 0
    assert json.loads((tmp_path / "few/report.json").read_text())["contaminated"] == 0
    assert "common phrases" in capsys.readouterr().err
    assert main(["decontaminate", f"out={tmp_path}/all", *words]) == 0
    assert json.loads((tmp_path / "all/report.json").read_text())["contaminated"] == 30
