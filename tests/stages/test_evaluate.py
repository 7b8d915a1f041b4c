"""Evaluation from the command line: anybody's task file and rows, models side by side, continued when stopped."""

import gzip
import json
import math

import numpy as np
import pytest

from herd import cli
from herd.data.shards import ShardWriter
from herd.evals.asking import RETRIEVED, SHUFFLED
from herd.run import read_manifest
from herd.stages import evaluate
from tests.post.models import save_model, small_tokenizer, write_questions

CSV = "question,a,b,right,topic\nWhat is open?,a mode,a thing,B,x\nWhich is it?,the path,no,A,x\nNow?,care,mode,A,y\n"
CHOICES = """\
ask: choices
data: mine.csv
prompt: "Question: {{ question }}\\nAnswer:"
choices: ["{{ a }}", "{{ b }}"]
answer: "{{ right }}"
group: "{{ topic }}"
"""


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two models, the demo's kind of questions, token shards, and somebody's own CSV with its task."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "one", seed=1)
    save_model(folder / "two", seed=2)
    write_questions(folder / "questions")
    tokenizer = small_tokenizer()
    for side, seed in (("train", 0), ("heldout", 1)):
        writer = ShardWriter(folder / "pack" / side, "library", 0, tokenizer=tokenizer.fingerprint)
        generator = np.random.default_rng(seed)
        for _ in range(6):
            text = " ".join(generator.choice(["open", "the", "thing", "with", "care", "mode"], size=80))
            writer.add(tokenizer.encode(text, bos=True, eos=True), num_bytes=len(text))
        writer.close()
    (folder / "mine.csv").write_text(CSV)
    (folder / "mine.yaml").write_text(CHOICES)
    return folder


def evaluated(inputs, out, *words):
    status = cli.main(["evaluate", str(inputs / "one"), str(inputs / "two"), *words, f"out={out}"])
    assert status == 0
    return out


def test_ones_own_csv_and_ten_lines_of_yaml_are_an_evaluation(inputs, tmp_path):
    out = evaluated(inputs, tmp_path / "e", f"tasks={inputs / 'mine.yaml'}")
    scores = rows_of(out / "scores.jsonl")
    assert {(row["task"], row["metric"]) for row in scores} == {("mine", "accuracy"), ("mine", "accuracy_norm")}
    assert all(row["n"] == 3 and row["low"] <= row["value"] <= row["high"] for row in scores)
    samples = rows_of(out / "samples.jsonl")
    assert len(samples) == 6
    assert samples[0]["reference"] == "a thing"
    assert len(samples[0]["nats"]) == 2
    figures = read_manifest(out)["figures"]
    assert figures["best"] in ("one", "two")
    assert figures["verdict"].startswith("two against one: ")


def test_a_suite_compares_models_over_tasks_and_its_page_shows_every_answer(inputs, tmp_path):
    text = CHOICES.replace("mine.csv", str(inputs / "mine.csv")) + "published: {Best: 0.9}\n"
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "suite.yaml").write_text("tasks: [first, second.yaml]\n")
    out = evaluated(inputs, tmp_path / "e", f"suite={tmp_path / 'suite.yaml'}", "prices={one: [1, 2]}")
    differences = rows_of(out / "comparisons.jsonl")
    assert [row["task"] for row in differences] == ["first", "second"]
    assert all(row["says"] == "no difference shown" and row["q"] >= row["p"] for row in differences)
    assert all(row["detectable"] >= 0 for row in differences)
    usage = rows_of(out / "usage.jsonl")
    assert [(row["model"], "cost" in row) for row in usage] == [("one", True)] * 2 + [("two", False)] * 2
    assert all(row["tokens_read"] > 0 for row in usage)
    page = (out / "samples.html").read_text()
    assert "published: Best" in page
    assert "ours: one" in page
    assert page.count("<details class='sample") == 6
    assert "What is open?" in page
    assert all(row["paper_half"] is not None for row in rows_of(out / "scores.jsonl"))
    assert cli.main(["evaluate", str(inputs / "one"), "suite=nonesuch", f"out={tmp_path / 'f'}"]) == 2


def test_the_papers_suites_pass_over_by_name_what_has_no_data(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "bench-boolq").mkdir()
    rows = [{"question": "is it open", "answer": True}, {"question": "is it a thing", "answer": False}]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "bench-boolq" / "dev_closed_book.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    out = evaluated(inputs, tmp_path / "e", "suite=base", f"data={tmp_path}")
    assert {row["task"] for row in rows_of(out / "scores.jsonl")} == {"boolq"}
    told = capsys.readouterr()
    assert "skipped: " in told.out + told.err
    assert "github.com/hendrycks/test" in told.out + told.err


def test_free_answers_to_plain_prompts_are_scored_by_name(inputs, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "What is it?", "answer": "It is 7."}\n{"prompt": "Open?", "answer": "3"}\n'
    )
    (tmp_path / "sums.yaml").write_text("ask: generate\ndata: rows.jsonl\nscorer: number\nmax_tokens: 4\n")
    out = evaluated(inputs, tmp_path / "e", f"tasks={tmp_path / 'sums.yaml'}", "limit=1")
    assert [row["n"] for row in rows_of(out / "scores.jsonl")] == [1, 1]


def test_the_demos_tasks_score_every_model_and_baseline(inputs, tmp_path):
    tasks = ",".join(f"demo/evals/{name}.yaml" for name in ("text", "trained", "unknown"))
    out = evaluated(inputs, tmp_path / "e", f"tasks=[{tasks}]", f"data={inputs}", "compare=previous")
    scores = rows_of(out / "scores.jsonl")
    bits = {row["model"]: row["value"] for row in scores if row["metric"] == "bits_per_byte"}
    assert bits.keys() == {"one", "two", "trigram", "xz", "xz given the training text"}
    assert all(math.isfinite(value) and value > 0 for value in bits.values())
    f1 = {
        row["model"]
        for row in scores
        if (row["task"], row["metric"]) == ("questions about trained modules", "token_f1")
    }
    assert f1 == {"one", "two", RETRIEVED, SHUFFLED}
    assert any(row["metric"] == "gain_over_retrieved" for row in scores)
    assert any(row["task"] == "summary questions about trained modules" for row in scores)
    assert {row["model"] for row in scores if row["metric"] == "refused"} == {"one", "two"}
    assert "retrieved answer" in read_manifest(out)["figures"]["verdict"]


def test_a_needle_grid_lies_beside_the_scores(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("herd.evals.needle.plain_words", lambda tokenizer: np.arange(300, 330))
    (tmp_path / "needle.yaml").write_text(f"ask: needle\ndata: {inputs / 'pack'}\ntrials: 1\nlengths: [64, 128]\n")
    out = evaluated(inputs, tmp_path / "e", f"tasks={tmp_path / 'needle.yaml'}", "text_models=[two]")
    grids = json.loads((out / "needle.json").read_text())["models"]
    assert grids.keys() == {"two"}
    assert np.shape(grids["two"]["accuracy"]) == (5, 2)


def test_an_evaluation_continues_where_it_was_stopped(inputs, tmp_path, monkeypatch):
    words = [f"tasks=[{inputs / 'mine.yaml'},demo/evals/unknown.yaml]", f"data={inputs}"]
    whole = evaluated(inputs, tmp_path / "whole", *words)
    real, calls = evaluate.ask, []

    def flaky(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluate, "ask", flaky)
    assert cli.main(["evaluate", str(inputs / "one"), str(inputs / "two"), *words, f"out={tmp_path / 'b'}"]) == 130
    broken = evaluated(inputs, tmp_path / "b", *words)
    assert len(calls) == 5  # four are needed, the third was asked twice
    for name in ("scores.jsonl", "samples.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("ask: choices\ndata: mine.csv\nscorer: taste\nchoices: [a]\nmax_token: 3\n", ["scorer: taste", "max_tokens"]),
        (
            "ask: choices\ndata: mine.csv\nprompt: '{{ q }}'\nchoices: [a]\nanswer: a\n",
            ["'q' is undefined", "question 1"],
        ),
        ("ask: choices\ndata: mine.csv\nprompt: x\nchoices: [a]\nanswer: z\n", ["none of its 1 choices"]),
        ("ask: generate\ndata: gone.csv\nsource: example.org\nprompt: x\n", ["gone.csv is not there", "example.org"]),
        ("ask: generate\ndata: mine.csv\nwhere: topic == 'z'\nprompt: x\nanswer: x\n", ["no rows"]),
    ],
)
def test_a_faulty_task_is_refused_with_what_is_wrong(inputs, tmp_path, capsys, monkeypatch, task, words):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "task.yaml").write_text(task)
    (tmp_path / "mine.csv").write_text(CSV)
    command = ["evaluate", str(inputs / "one"), f"tasks={tmp_path / 'task.yaml'}", f"out={tmp_path / 'e'}"]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
