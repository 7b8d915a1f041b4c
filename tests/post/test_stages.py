"""The stages questions, preferences and reject, run on tiny models and made-up modules."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import herd.post.sampling as sampling
from herd import cli
from herd.config import load
from herd.data.shards import ShardWriter
from herd.data.split import is_held_out
from herd.demo.preferences import for_dpo
from herd.demo.wordings import UNKNOWN
from herd.errors import ConfigError, DataError
from herd.run import read_manifest
from herd.stages import reject
from herd.stages.demo import preferences, questions
from tests.post.models import save_model, save_reward_model, small_tokenizer, write_questions


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def figures_of(folder):
    return read_manifest(folder)["figures"]


def document(url, text, source="library", title="", drop=None):
    group = url.split("/lib/")[-1].split(".")[0] if url.startswith("python://") else url
    return {"url": url, "title": title, "text": text, "source": source, "group": group, "drop": drop}


def write_documents(folder, rows):
    (folder / "documents").mkdir(parents=True)
    schema = pa.schema([(name, pa.string()) for name in ("url", "title", "text", "source", "group", "drop")])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "documents" / "part.parquet")
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with two chat models, a reward model, questions and token shards."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "one", seed=1)
    save_model(folder / "two", seed=2)
    save_reward_model(folder / "reward", seed=3)
    write_questions(folder / "questions")
    tokenizer = small_tokenizer()
    for side, seed in (("train", 0), ("heldout", 1)):
        writer = ShardWriter(folder / "shards" / side, "library", 0, tokenizer=tokenizer.fingerprint)
        generator = np.random.default_rng(seed)
        for _ in range(6):
            text = " ".join(generator.choice(["open", "the", "thing", "with", "care", "mode"], size=80))
            writer.add(tokenizer.encode(text, bos=True, eos=True), num_bytes=len(text))
        writer.close()
    return folder


# ---- questions -------------------------------------------------------------------------------------------------------


def python_documents(num_modules=30):
    made = []
    for number in range(num_modules):
        text = (
            f'"""All about the thing {number}."""\n\n\ndef open(path):\n    """Open the thing {number} with care."""\n'
        )
        made.append(document(f"python://3.11/lib/thing{number}.py", text))
    hidden = '"""A module nobody should hear about."""\n'
    return [*made, document("python://3.11/lib/dropped.py", hidden, drop="near_duplicate")]


def test_questions_are_made_from_kept_documents_only_and_split_by_module(tmp_path):
    documents = write_documents(tmp_path / "curate", python_documents())
    settings = load(
        questions.QuestionsSettings,
        None,
        [f"documents={documents}", f"out={tmp_path / 'q'}", "holdout=0.3", "min_facts=20"],
    )
    out = questions.run(settings)
    figures = figures_of(out)
    assert figures["enough"] == 1
    assert figures["facts"] == 60
    text = (out / "train.jsonl").read_text(encoding="utf-8")
    assert "dropped" not in text
    assert not any(is_held_out(row["group"], 0.3) for row in rows_of(out / "train.jsonl"))
    assert all(is_held_out(row["group"], 0.3) for row in rows_of(out / "eval_heldout.jsonl"))
    assert "Python's documentation" in text
    before = (out / "train.jsonl").stat().st_mtime_ns
    assert questions.run(settings) == out  # finished: skipped
    assert (out / "train.jsonl").stat().st_mtime_ns == before


def test_ones_own_pages_give_questions_about_titles_sections_and_terms(tmp_path):
    text = (
        "Part {0}\n\nThis page tells about the bees of {0}.\n\nHive{0} is a wooden box of the size {0} for bees.\n\n"
        "Care in year {0}\n\nLook after the hive number {0} every week. Then rest."
    )
    pages = [
        document(f"https://bees.example/{number}", text.format(number), source="web", title=f"Bees {number}")
        for number in range(40)
    ]
    documents = write_documents(tmp_path / "curate", pages)
    out = questions.run(questions.QuestionsSettings(documents=documents, out=tmp_path / "q"))
    rows = rows_of(out / "train.jsonl")
    kinds = {row["kind"] for row in rows}
    assert {"page", "section", "term"} <= kinds
    assert "unknown" not in kinds
    assert any("the pages I was given" in row["answer"] for row in rows)


def test_too_few_facts_are_said_to_be_too_few_and_no_questions_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    documents = write_documents(tmp_path / "curate", python_documents(3))
    out = questions.run(questions.QuestionsSettings(documents=documents, out=tmp_path / "q"))
    assert figures_of(out)["enough"] == 0
    assert not (out / "train.jsonl").exists()
    assert "too few to learn answers from" in capsys.readouterr().err


def test_documents_of_the_wrong_kind_are_refused_with_one_message(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("nothing")
    with pytest.raises(DataError, match="herd curate"):
        questions.run(questions.QuestionsSettings(documents=tmp_path / "empty", out=tmp_path / "a"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="not a Parquet file"):
        questions.run(questions.QuestionsSettings(documents=broken, out=tmp_path / "b"))
    pq.write_table(pa.table({"url": ["x"], "text": ["y"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="columns"):
        questions.run(questions.QuestionsSettings(documents=tmp_path / "other.parquet", out=tmp_path / "c"))


# ---- preferences and reject ------------------------------------------------------------------------------------------


def make_pairs(inputs, out, questions=None):
    return preferences.run(
        preferences.PreferencesSettings(
            checkpoint=inputs / "one",
            questions=questions or inputs / "questions",
            out=out,
            max_prompts=20,
            samples=2,
            answer_tokens=6,
        )
    )


def make_best(inputs, out, **changes):
    return reject.run(
        reject.RejectSettings(
            **{
                "checkpoint": inputs / "one",
                "reward": inputs / "reward",
                "prompts": inputs / "questions" / "prompts.jsonl",
                "references": inputs / "questions" / "train.jsonl",
                "out": out,
                "samples": 3,
                "max_prompts": 12,
                "answer_tokens": 5,
                **changes,
            }
        )
    )


def test_preferences_writes_pairs_of_trained_groups_and_a_held_out_file(inputs, tmp_path):
    out = make_pairs(inputs, tmp_path / "p")
    pairs, heldout = rows_of(out / "pairs.jsonl"), rows_of(out / "heldout.jsonl")
    assert len(pairs) == figures_of(out)["pairs"] > 30
    assert {"other_answer", "own_sample", "refusal"} <= {pair["kind"] for pair in pairs}
    refused = [pair["chosen"].startswith("I do not know") for pair in pairs if pair["kind"] == "refusal"]
    assert {True, False} == {*refused}  # neither side is always right
    assert heldout
    own = rows_of(out / "own.jsonl")
    assert own == for_dpo(pairs) and {pair["kind"] for pair in own} <= {"own_sample", "edited", "refusal"}
    assert all(pair["chosen"] == UNKNOWN for pair in own if pair["kind"] == "refusal")
    assert rows_of(out / "differing.jsonl")
    assert not any(is_held_out(pair["group"], 0.2) for pair in pairs)
    assert all(is_held_out(pair["group"], 0.2) for pair in heldout)
    asked = {
        message["content"]
        for row in rows_of(inputs / "questions" / "eval_trained.jsonl")
        for message in row["messages"]
    }
    assert not asked & {pair["prompt"][-1]["content"] for pair in pairs}


def test_reject_keeps_the_best_share_and_mixes_the_references_in(inputs, tmp_path):
    out = make_best(inputs, tmp_path / "r")
    chosen, conversations = rows_of(out / "chosen.jsonl"), rows_of(out / "conversations.jsonl")
    references = rows_of(inputs / "questions" / "train.jsonl")
    assert 0 < len(chosen) < 12
    assert conversations == [*references, *chosen]
    figures = figures_of(out)
    assert figures["f1_of_chosen"] <= figures["f1_of_best"]
    alone = make_best(inputs, tmp_path / "alone", references=None, keep=1.0)
    assert len(rows_of(alone / "conversations.jsonl")) == len(rows_of(alone / "chosen.jsonl")) == 12


@pytest.mark.parametrize("make", [make_pairs, make_best])
def test_an_interrupted_stage_ends_with_the_results_of_an_undisturbed_one(inputs, tmp_path, monkeypatch, make):
    monkeypatch.setattr(sampling, "CHUNK_ANSWERS", 12)
    monkeypatch.setattr(reject, "_CHUNK_QUESTIONS", 5)
    whole = make(inputs, tmp_path / "whole")
    calls = []

    class Flaky(sampling.Engine):
        def generate(self, inputs, params=None):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().generate(inputs, params)

    monkeypatch.setattr(sampling, "Engine", Flaky)
    with pytest.raises(KeyboardInterrupt):
        make(inputs, tmp_path / "broken")
    broken = make(inputs, tmp_path / "broken")
    for file in whole.glob("*.jsonl"):
        if file.name != "metrics.jsonl":
            assert (broken / file.name).read_bytes() == file.read_bytes()


def test_questions_that_were_not_enough_are_refused_by_name(inputs, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "x.txt").write_text("x")
    with pytest.raises(DataError, match="herd demo questions"):
        make_pairs(inputs, tmp_path / "p", questions=tmp_path / "q")


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": [{"role": "user", "content": f"What does thing {number} do?"}]} for number in range(6)],
        [{"prompt": f"Open the thing {number}"} for number in range(6)],
        [{"prompt": "What is it?", "answer": "It is a thing.", "kind": "what"}, {"prompt": "Which parameters?"}],
    ],
)
def test_anybodys_prompts_are_sampled_and_chosen_from_the_command_line(inputs, tmp_path, rows):
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"checkpoint={inputs / 'one'}", f"reward={inputs / 'reward'}", f"prompts={prompts}", "samples=2"]
    assert cli.main(["reject", *words, "answer_tokens=4", "keep=1.0", f"out={tmp_path / 'r'}"]) == 0
    chosen = rows_of(tmp_path / "r" / "conversations.jsonl")
    assert chosen
    assert all(row["messages"][-1]["role"] == "assistant" and row["messages"][-1]["content"] for row in chosen)
    figures = figures_of(tmp_path / "r")
    assert figures["reward_of_chosen"] >= figures["reward_of_samples"]
    assert ("f1_of_chosen" in figures) == any("answer" in row for row in rows)


def test_a_row_without_a_prompt_is_refused_with_its_place(inputs, tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Why?"}\n{"text": "no"}\n')
    words = [f"checkpoint={inputs / 'one'}", f"reward={inputs / 'reward'}", f"prompts={tmp_path / 'mine.jsonl'}"]
    assert cli.main(["reject", *words, f"out={tmp_path / 'r'}"]) == 2
    assert "row 2: no prompt" in capsys.readouterr().err


def test_settings_that_make_no_sense_are_refused_together():
    with pytest.raises(ConfigError, match="samples must be at least 2"):
        load(reject.RejectSettings, None, ["out=x", "checkpoint=c", "reward=r", "prompts=q", "samples=1"])
    with pytest.raises(ConfigError, match="temperature"):
        load(preferences.PreferencesSettings, None, ["out=x", "checkpoint=c", "questions=q", "temperature=0"])
