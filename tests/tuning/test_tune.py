"""`herd tune`: what rows are is found out and said, they are split by prompt, learned, and judged before and after."""

import json
import re

import numpy as np
import pytest
import torch

import herd
from herd.errors import ConfigError, DataError
from herd.evals.adapted import open_adapter
from herd.formats.checkpoint import save
from herd.plan.cluster import Device
from herd.plan.project import Machine
from herd.run import read_manifest
from herd.stages import tune as stage
from herd.tokenizer.tokenizer import Tokenizer
from herd.tuning.judging import calibration, general_text, nats_of
from herd.tuning.labels import labelled
from herd.tuning.reading import kind_of
from tests.train.test_stages import text, write_json
from tests.train.tiny import tiny_model

ASK = "{text} {labels}"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("base") / "base"
    save(tiny_model(vocab_size=tokenizer.vocab_size), folder, tokenizer)
    return folder


@pytest.fixture(autouse=True)
def a_known_machine(monkeypatch):
    """Measuring takes seconds, and a busy machine's figures are others each time."""
    device = Device("a CPU", 1e11, 8e9, 1e10, 1e10, 1e10, 1, 30.0)
    monkeypatch.setattr(stage, "this_machine", lambda: Machine(device, 1, weight_bytes=4, on_gpu=False))


def csv_of_labels(path, count=40):
    rows = [f"{'bees' if n % 2 else 'trees'} {n},{'yes' if n % 2 else 'no'}" for n in range(count)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


QUICK = {"learning_rate": 0.02, "epochs": 12, "compile": "off", "dtype": "fp32", "answers": 1, "batch_tokens": 512}


def tuned(tmp_path, base, data, **options):
    return herd.tune(base, data, out=tmp_path / "out", **(QUICK | options))


def test_labels_are_learned_from_a_table_and_the_page_tells_what_changed(tmp_path, base, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    found = tuned(tmp_path, base, csv_of_labels(tmp_path / "rows.csv"), ask=ASK)
    out, err = capsys.readouterr()
    assert "⟦" in out and "40 rows (text and label): texts with a label" in err
    assert "LoRA adapters: for so few tokens" in err and "by plan" in err
    figures = {row["name"]: row for row in found["figures"]}
    assert figures["nats of the right label"]["says"] == "better"
    assert figures["bits per byte of general text"]["n"] > 20
    assert np.sum(found["confusion"]["after"]) == figures["accuracy"]["n"] == len(found["probabilities"])
    assert sum(found["probabilities"][0]["after"].values()) == pytest.approx(1, abs=1e-3)
    page = (found["path"] / "results.html").read_text()
    assert all(word in page for word in ("Confusion matrix", "Calibration", "watched while learning", "herd serve"))
    assert read_manifest(found["path"])["figures"]["method"] == "lora"
    served = re.search(r"adapters={tuned: (.*?)}", found["commands"]["serve it beside the base, as the model `tuned`"])
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        merged = herd.load(found["path"])[0](tokens)
        torch.testing.assert_close(open_adapter("tuned", tmp_path / "out/adapter").load()(tokens), merged)
    assert served[1] == str(tmp_path / "out/adapter")


def test_conversations_texts_and_preferences_are_each_learned_in_their_way(tmp_path, base):
    chats = [{"messages": [{"role": "user", "content": f"{n} {text(n, 3)}"},
                           {"role": "assistant", "content": "the bees fly home"}]} for n in range(24)]  # fmt: skip
    found = tuned(tmp_path, base, write_json(tmp_path / "chats.jsonl", chats))
    assert found["figures"][0]["name"] == "bits per byte of held-out answers"
    assert found["figures"][0]["says"] == "better" and found["answers"][0]["reference"] == "the bees fly home"
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(8):
        (pages / f"{number}.txt").write_text("\n\n".join(text(n + number, 30) for n in range(4)))
    found = herd.tune(base, pages, out=tmp_path / "text", **QUICK, method="full", general=pages / "0.txt")
    assert found["figures"][0]["name"] == "bits per byte of held-out text" and found["figures"][0]["says"] == "better"
    assert "herd serve" in found["commands"]["serve it"] and "adapters" not in found["commands"]["serve it"]
    pairs = [{"prompt": f"{n} why?", "chosen": "the bees fly", "rejected": text(n, 4)} for n in range(24)]
    found = herd.tune(base, write_json(tmp_path / "pairs.jsonl", pairs), out=tmp_path / "dpo", **QUICK)
    assert found["figures"][0]["name"].startswith("better response")
    assert found["figures"][0]["after"][0] > 0.5


def test_looking_writes_nothing_and_a_finished_run_is_told_again(tmp_path, base, capsys, monkeypatch):
    file = csv_of_labels(tmp_path / "rows.csv")
    tuned(tmp_path, base, file, look=True)
    assert not (tmp_path / "out").exists()
    first = tuned(tmp_path, base, file, max_steps=2)
    stamp = (tmp_path / "out/results.json").stat().st_mtime_ns
    assert tuned(tmp_path, base, file, max_steps=2)["figures"] == first["figures"]
    assert (tmp_path / "out/results.json").stat().st_mtime_ns == stamp


def test_few_rows_are_planned_for_ten_minutes_unless_somebody_says_how_long(tmp_path, base, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    slow = Device("a slow CPU", 3e7, 8e9, 1e10, 1e10, 1e10, 1, 30.0)
    monkeypatch.setattr(stage, "this_machine", lambda: Machine(slow, 1, efficiency=0.3, weight_bytes=4, on_gpu=False))
    file = csv_of_labels(tmp_path / "rows.csv")

    def said(**options):
        herd.tune(base, file, out=tmp_path / "out", look=True, dtype="fp32", compile="off", **options)
        err = capsys.readouterr().err
        steps, _, minutes = re.search(r"at most ([\d,]+) steps.*\((.*) epochs\).*about (.*) by plan", err).groups()
        return int(steps), minutes, err

    steps, _, err = said()
    whole, _, unbounded = said(epochs=4)
    assert 10 <= steps < whole and f"4 epochs take {whole} steps, and 10 minutes were planned for" in err
    assert "planned for" not in unbounded
    assert steps < said(minutes=12)[0] < said(minutes=1000)[0] == whole
    assert said(max_steps=3)[0] == 3 and said(minutes=0.01)[0] == 10


def test_a_folder_with_its_own_split_is_judged_by_its_test_file(tmp_path, base, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    folder = tmp_path / "own"
    folder.mkdir()
    csv_of_labels(folder / "train.csv", 30), csv_of_labels(folder / "test.csv", 10)
    found = tuned(tmp_path, base, folder, ask=ASK, max_steps=2)
    assert "learned from train.csv, judged by test.csv" in capsys.readouterr().err
    assert found["figures"][0]["n"] == 10


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"text": "a"}], "text"),
        ([{"sentence": "a", "label": 1}], "label"),
        ([{"premise": "a", "hypothesis": "b", "label": 0}], "label"),
        ([{"review": "a", "stars": "5"}], "label"),
        ([{"instruction": "a", "output": "b"}], "chat"),
        ([{"prompt": "a", "completion": "b", "label": True}], "chat"),
        ([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}], "chat"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "preferences"),
    ],
)
def test_what_rows_are_is_seen_from_their_keys(rows, kind):
    assert kind_of([("here, row 1", row) for row in rows])[0] == kind


def test_rows_that_fit_nothing_or_lie_mixed_or_are_too_few_are_named(tmp_path, base):
    with pytest.raises(DataError, match=r"row 2: neither a conversation.*the row has a, b.*rows\.columns"):
        tuned(tmp_path, base, write_json(tmp_path / "a.jsonl", [{"text": "x"}, {"a": 1, "b": 2}]))
    mixed = [{"text": "x"}, {"text": "y"}, {"prompt": "x", "completion": "y"}]
    with pytest.raises(DataError, match=r"several kinds lie together \(2 text, 1 chat; .*row 3 is chat\)"):
        tuned(tmp_path, base, write_json(tmp_path / "b.jsonl", mixed))
    with pytest.raises(DataError, match="too little to tune on: 4 rows"):
        tuned(tmp_path, base, csv_of_labels(tmp_path / "c.csv", 4))
    one = [{"text": text(n), "label": "same"} for n in range(9)]
    with pytest.raises(DataError, match="has 1 different values"):
        tuned(tmp_path, base, write_json(tmp_path / "d.jsonl", one))
    with pytest.raises(ConfigError, match="the place of the text"):
        tuned(tmp_path, base, csv_of_labels(tmp_path / "e.csv"), ask="Which?")


def test_columns_of_other_names_are_mapped_and_a_name_beats_a_number(tmp_path):
    rows = [("r", {"body": "a", "topic_id": n % 2}) for n in range(4)]
    mapped = [(place, {"text": row["body"], "label": row["topic_id"]}) for place, row in rows]
    assert labelled(mapped, "").labels == ("0", "1")
    named = [("r", {"text": "a", "label": n % 2, "label_text": "no" if n % 2 else "yes"}) for n in range(4)]
    assert labelled(named, "").labels == ("no", "yes")


def test_nats_are_those_of_the_model_alone_whatever_shares_a_row(base, tokenizer):
    model = herd.load(base)[0]
    general = general_text(None, tokenizer)
    together = nats_of(model, general.documents, row_tokens=1024, micro_tokens=2048)
    for number in (0, 7):
        ids = torch.tensor(general.documents.tokens(number).astype(np.int64))[None]
        with torch.no_grad():
            table = model(ids)[0, :-1].log_softmax(-1)
        alone = -table.gather(1, ids[0, 1:, None]).sum().item()
        assert together[number] == pytest.approx(alone, rel=1e-4)


def test_the_calibration_error_is_its_formula(base):
    class Part:
        right, per_row = np.array([0, 1, 0, 0]), 2

        def __len__(self):
            return 4

    chances = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.65, 0.35]])
    error, bins = calibration(Part(), chances)
    assert error.value == pytest.approx((abs(1.9 - 1) + abs(1.3 - 2)) / 4)
    assert [(one.n, one.accuracy) for one in bins] == [(2, 1.0), (2, 0.5)]
    assert error.low <= error.value <= error.high


def test_an_interrupted_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path, base, monkeypatch):
    file = csv_of_labels(tmp_path / "rows.csv")
    whole = herd.tune(base, file, out=tmp_path / "whole", **QUICK | {"epochs": 2})
    learn = stage.measured
    calls = []

    def stopped(*given, **how):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return learn(*given, **how)

    monkeypatch.setattr(stage, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        herd.tune(base, file, out=tmp_path / "torn", **QUICK | {"epochs": 2})
    monkeypatch.setattr(stage, "measured", learn)
    torn = herd.tune(base, file, out=tmp_path / "torn", **QUICK | {"epochs": 2})
    assert json.dumps(torn["figures"]) == json.dumps(whole["figures"])
