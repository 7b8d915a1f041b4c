"""Evaluation from the command line: anybody's task file and rows, models side by side, continued when stopped."""

import gzip
import json
import math

import numpy as np
import pytest

from herd import cli
from herd.data.shards import ShardWriter
from herd.evals.asking import RETRIEVED, SHUFFLED
from herd.formats.checkpoint import load
from herd.run import read_manifest
from herd.stages import evaluate
from herd.train.lora import LoraSettings, add_adapters, save_adapters
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
    assert len({row["prompt_hash"] for row in scores}) == 1, "both were asked the same"
    assert scores[0]["prompt_hash"]
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["suite=basis"], ["basis is none", "adversarial, base"]),
        (["tasks=[evals/mmmlu.yaml,evals/arc-esy.yaml]"], ["arc-esy.yaml (did you mean evals/arc-easy.yaml?)", "mmlu"]),
        (["tasks=MINE", "models={a: gone, b: lost/run}"], ["models: not there: a (gone), b (lost/run)"]),
        (
            ["tasks=MINE", "models={it: http://127.0.0.1:9/v1}"],
            ["mine needs the weights", "it answers `ask: generate`"],
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(inputs, tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    words = [word.replace("MINE", str(inputs / "mine.yaml")) for word in words]
    assert cli.main(["evaluate", str(inputs / "one"), *words, f"out={tmp_path / 'e'}"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in told), error


def test_the_papers_suites_pass_over_by_name_what_has_no_data(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "bench-boolq").mkdir()
    rows = [{"question": "is it open", "answer": True}, {"question": "is it a thing", "answer": False}]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "bench-boolq" / "dev_closed_book.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    out = evaluated(inputs, tmp_path / "e", "suite=base", f"data={tmp_path}")
    assert {row["task"] for row in rows_of(out / "scores.jsonl")} == {"boolq"}
    assert "mmlu" in {row["task"] for row in rows_of(out / "skipped.jsonl")}
    assert "tasks were not asked" in (out / "samples.html").read_text()
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


def test_free_answers_have_a_limit_of_their_own(inputs, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What?", "answer": "7"}\n' * 5)
    (tmp_path / "sums.yaml").write_text("ask: generate\ndata: rows.jsonl\nscorer: number\nmax_tokens: 4\n")
    words = [f"tasks=[{inputs / 'mine.yaml'}, {tmp_path / 'sums.yaml'}]", "limit=3", "free_limit=2"]
    rows = rows_of(evaluated(inputs, tmp_path / "e", *words) / "scores.jsonl")
    assert {(row["task"], row["n"]) for row in rows} == {("mine", 3), ("sums", 2)}


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


def long_and_short(folder, name, extra=""):
    """A CSV of which the second question is longer than the tiny models' 256 tokens, and its task."""
    (folder / "long.csv").write_text(CSV.replace("Which is it?", "Which thing is open? " * 200))
    (folder / f"{name}.yaml").write_text(CHOICES.replace("mine.csv", "long.csv") + extra)
    return folder / f"{name}.yaml"


def test_a_question_beyond_the_context_is_left_out_and_named_and_the_others_are_asked(
    inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "Open " * 300, "answer": "3"}) + '\n{"prompt": "Open?", "answer": "3"}\n'
    )
    (tmp_path / "free.yaml").write_text(
        "ask: generate\ndata: rows.jsonl\nscorer: number\nmax_tokens: 4\nsamples: 2\ntemperature: 1.0\n"
    )
    tasks = f"tasks=[{long_and_short(tmp_path, 'long')},{tmp_path / 'free.yaml'}]"
    out = evaluated(inputs, tmp_path / "e", tasks)
    told = "".join(capsys.readouterr())
    assert told.count("left out: 1 of 3 questions, beyond the context of one: item 1 in samples.jsonl") == 1
    assert told.count("left out: 1 of 2 questions, beyond the context of two: item 0") == 1
    scores = rows_of(out / "scores.jsonl")
    assert {(row["task"], row["n"], *row["left_out"]) for row in scores} == {("long", 2, 1), ("free", 1, 0)}
    alone = evaluated(inputs, tmp_path / "alone", f"tasks={inputs / 'mine.yaml'}")
    plain = {(row["model"], row["item"]): row.get("nats") for row in rows_of(alone / "samples.jsonl")}
    samples = [row for row in rows_of(out / "samples.jsonl") if row["task"] == "long"]
    assert [row["item"] for row in samples if "left_out" in row] == [1, 1]
    assert all(row["nats"] == pytest.approx(plain[row["model"], row["item"]]) for row in samples if "nats" in row)
    assert {row["n"] for row in rows_of(out / "comparisons.jsonl")} == {1, 2}
    page = (out / "samples.html").read_text()
    assert "1 left out" in page and "one not asked" in page and "the context is 256" in page


def test_of_a_task_of_which_nothing_fits_all_is_left_out_and_said(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    task = long_and_short(tmp_path, "long", "where: row.right == 'A' and row.topic == 'x'\n")
    out = evaluated(inputs, tmp_path / "e", f"tasks={task}")
    assert [(row["n"], row["left_out"]) for row in rows_of(out / "scores.jsonl")] == [(0, [0])] * 2
    manifest = read_manifest(out)["figures"]
    assert manifest == {"verdict": "two against one: no question fits into the context of both"}
    assert "all 1 left out" in (out / "samples.html").read_text()
    assert rows_of(out / "comparisons.jsonl") == []


def test_examples_are_dropped_only_where_the_task_allows_it(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    words = " ".join(["Open the thing with care"] * 8)
    (tmp_path / "shots.csv").write_text("question,a,b,right,topic\n" + f"{words},mode,path,A,x\n" * 6)

    def asked(name, shots, extra=""):
        task = tmp_path / f"{name}.yaml"
        own = CHOICES.replace("mine.csv", str(inputs / "mine.csv"))
        task.write_text(f"{own}shots: {shots}\nshots_from: shots.csv\n{extra}")
        out = evaluated(inputs, tmp_path / name, f"tasks={task}")
        return rows_of(out / "scores.jsonl")[0], rows_of(out / "samples.jsonl")[0], "".join(capsys.readouterr())

    score, _, told = asked("strict", 6)
    assert (score["n"], score["left_out"]) == (0, [0, 1, 2])
    assert "would ask them with fewer examples" in told
    score, loose, told = asked("loose", 6, "drop_shots: true\n")
    assert (score["n"], score["left_out"], score["fewer_shots"]) == (3, [], [0, 1, 2])
    assert 0 < loose["shots"] < 6
    assert f"fewer examples: 3 of 3 questions to one, down to {loose['shots']} instead of 6" in told
    score, fewer, _ = asked("fewer", loose["shots"])  # as if the task had as many
    assert fewer["nats"] == loose["nats"] and score["fewer_shots"] == []
    assert 0 in asked("more", loose["shots"] + 1)[0]["left_out"]


def test_the_adapter_of_a_run_is_judged_beside_its_base_and_as_the_runs_merged_checkpoint(inputs, tmp_path):
    turns = [{"role": "user", "content": "What is open?"}, {"role": "assistant", "content": "a mode with care"}]
    (tmp_path / "talks.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 32)
    words = [f"conversations=[{tmp_path / 'talks.jsonl'}]", f"checkpoint={inputs / 'one'}", f"out={tmp_path / 'run'}"]
    words += ["optimizer.lora.rank=4", "optimizer.learning_rate=0.05", "batch.tokens=256", "batch.row_tokens=128"]
    assert cli.main(["sft", *words]) == 0
    (tmp_path / "text.yaml").write_text(f"ask: bits_per_byte\ndata: {inputs / 'pack'}\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is open?", "answer": "a mode with care"}\n')
    (tmp_path / "free.yaml").write_text("ask: generate\ndata: rows.jsonl\nmax_tokens: 12\n")
    models = [f"models.{name}={path}" for name, path in (("base", inputs / "one"), ("merged", tmp_path / "run"))]
    models.append(f"models.adapter={tmp_path / 'run' / 'adapter'}")
    tasks = f"tasks=[{inputs / 'mine.yaml'},{tmp_path / 'text.yaml'},{tmp_path / 'free.yaml'}]"
    assert cli.main(["evaluate", *models, tasks, f"out={tmp_path / 'e'}"]) == 0
    nats, answers = {"base": [], "adapter": [], "merged": []}, {}
    for row in rows_of(tmp_path / "e" / "samples.jsonl"):
        nats[row["model"]] += row.get("nats", [])
        answers[row["task"], row["model"]] = row["answer"]
    assert nats["adapter"] == pytest.approx(nats["merged"], abs=1e-3)
    assert nats["adapter"] != pytest.approx(nats["base"], abs=0.1)
    assert answers["free", "adapter"] == answers["free", "merged"] != answers["free", "base"]  # asked in a conversation
    bits = {row["model"]: row["value"] for row in rows_of(tmp_path / "e" / "scores.jsonl") if "text" in row["task"]}
    assert bits["adapter"] == pytest.approx(bits["merged"], abs=1e-3) != pytest.approx(bits["base"], abs=1e-2)


def test_an_adapter_without_its_base_is_refused_until_the_base_is_given(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    model = load(inputs / "one")
    add_adapters(model, LoraSettings(rank=2))
    folder = save_adapters(model, tmp_path / "mine" / "adapter", base="somebody/model-1B", tokenizer=small_tokenizer())
    words = ["evaluate", str(folder), f"tasks={inputs / 'mine.yaml'}", f"out={tmp_path / 'e'}"]
    assert cli.main(words) == 2
    assert "its base model somebody/model-1B" in (told := capsys.readouterr().err) and "bases.mine=PATH" in told
    assert cli.main([*words, f"bases.mine={inputs / 'one'}"]) == 0
    assert f"mine: a LoRA adapter, added to {inputs / 'one'}" in "".join(capsys.readouterr())
    assert cli.main(["evaluate", str(inputs / "two"), *words[2:3], f"bases.two={inputs / 'one'}", "out=x"]) == 2
    assert "is no adapter" in capsys.readouterr().err


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
    assert not (tmp_path / "e").exists(), "nothing is begun"
