"""Rows kept aside: their loss is measured on the way, ends the run, and says which weights are kept."""

import json

import pytest
import torch
from safetensors.torch import load_file

from herd.errors import ConfigError, DataError
from herd.formats.checkpoint import load, save
from herd.formats.vocabulary import open_tokenizer
from herd.run import read_manifest
from herd.stages import dpo, reward, sft
from herd.tokenizer.chat import stops
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.schedule import ScheduleSettings, learning_rate
from herd.train.validation import history
from tests.train.test_stages import QUICK, conversations, pairs, settings_of, text, write_json
from tests.train.tiny import tiny_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("base"), Tokenizer({bytes([byte]): byte for byte in range(256)})
    save(tiny_model(vocab_size=found.vocab_size), folder / "base", found)
    save_tokenizer(found, folder / "base")
    return folder / "base"


def tuned(tmp_path, checkpoint, name="sft", **changes):
    values = {"conversations": conversations(tmp_path), "checkpoint": checkpoint, "out": tmp_path / name}
    options = QUICK | {"batch__tokens": 256, "validation__share": 0.3}
    return sft.run(settings_of(sft, "SftSettings", **(values | options | changes)))


def test_a_run_that_learns_by_heart_ends_early_and_keeps_what_was_best(tmp_path, checkpoint):
    options = {"epochs": 200, "validation__every_steps": 2, "validation__patience": 3}
    path = tuned(tmp_path, checkpoint, **options, optimizer__learning_rate=3e-2)
    rows, figures = history(path), read_manifest(path)["figures"]
    best = min(rows, key=lambda row: row["loss"])
    assert figures["steps"] == rows[-1]["step"] == best["step"] + 6 < 200
    assert figures["validation_loss"] == best["loss"]
    assert not list(path.rglob("best*"))


def test_the_kept_weights_are_those_whose_loss_was_measured(tmp_path, checkpoint):
    best = tuned(tmp_path, checkpoint, max_steps=4, validation__every_steps=1, schedule__shape="constant")
    last = tuned(tmp_path, checkpoint, "last", max_steps=int(read_manifest(best)["figures"]["validation_step"]),
                 validation__keep="last", schedule__shape="constant")  # fmt: skip
    for name, weight in load_file(best / "checkpoint/model.safetensors").items():
        torch.testing.assert_close(weight, load_file(last / "checkpoint/model.safetensors")[name])


def test_snapshots_carry_the_tokenizer_and_what_ends_an_answer(tmp_path, checkpoint):
    path = tuned(tmp_path, checkpoint, max_steps=2, saving__snapshot_steps=1)
    for name in ("checkpoints/step-00000001", "checkpoint"):
        assert open_tokenizer(path / name).vocab_size == load(path / name).config.vocab_size
        assert load(path / name).config.eos_token_id == stops(open_tokenizer(path / name))


def test_files_of_their_own_are_measured_instead_of_a_share(tmp_path, checkpoint):
    file = write_json(tmp_path / "own.jsonl", [{"prompt": text(n), "completion": text(n + 1)} for n in range(3)])
    path = tuned(tmp_path, checkpoint, max_steps=2, validation__share=0, validation__files=f"[{file}]")
    assert read_manifest(path)["figures"]["conversations"] == 20
    assert len(history(path)) == 2


@pytest.mark.parametrize("stage", [reward, dpo])
def test_pairs_are_kept_aside_by_prompt_too(tmp_path, checkpoint, stage):
    name = stage.__name__.rpartition(".")[2].capitalize() + "Settings"
    values = {"pairs": pairs(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "out", "max_steps": 2}
    path = stage.run(settings_of(stage, name, **values, **QUICK, validation__share=0.3))
    assert {"step", "loss", "accuracy", "margin"} <= history(path)[-1].keys()


def test_the_terminator_counts_where_that_is_wished(tmp_path, checkpoint):
    margins = []
    for counted in ("false", "true"):
        values = {"pairs": pairs(tmp_path), "checkpoint": checkpoint, "out": tmp_path / counted, "max_steps": 3}
        path = dpo.run(settings_of(dpo, "DpoSettings", **values, **QUICK, count_terminators=counted, loss="ipo"))
        margins.append(json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["margin"])
    assert margins[0] != margins[1]


def test_a_share_that_leaves_nothing_and_two_warm_ups_are_refused(tmp_path, checkpoint):
    file = write_json(tmp_path / "alike.jsonl", [{"prompt": "Why?", "completion": text(n)} for n in range(5)])
    with pytest.raises(DataError, match="all 5 conversations begin alike"):
        tuned(tmp_path, checkpoint, conversations=file)
    with pytest.raises(ConfigError, match="warmup_steps or warmup_share"):
        tuned(tmp_path, checkpoint, schedule__warmup_steps=1, schedule__warmup_share=0.1)


def test_a_warm_up_given_as_a_share_is_that_part_of_the_run():
    share, steps = ScheduleSettings(warmup_share=0.1), ScheduleSettings(warmup_steps=5)
    assert [learning_rate(share, 1.0, n, 50) for n in range(50)] == [
        learning_rate(steps, 1.0, n, 50) for n in range(50)
    ]


def test_columns_are_mapped_files_weighed_and_long_rows_cut_or_refused(tmp_path, checkpoint):
    file = tmp_path / "own.csv"
    file.write_text("asked,told\n" + "".join(f"{n} {text(n)},{text(n, 40)}\n" for n in range(10)))
    values = {"conversations": f"[{file}]", "rows__columns": "{prompt: asked, completion: told}", "max_steps": 1}
    values |= {"validation__share": 0, "batch__row_tokens": 150, "batch__tokens": 150}
    with pytest.raises(DataError, match=r"longer than 150 tokens \(10\).*rows.too_long=cut"):
        tuned(tmp_path, checkpoint, **values)
    with pytest.raises(DataError, match=r"own.csv, row 1: has \d+ tokens, and 150 is the most"):
        tuned(tmp_path, checkpoint, **values, rows__too_long="refuse")
    path = tuned(tmp_path, checkpoint, **values, rows__too_long="cut", rows__weights="{own.csv: 1.5}")
    assert read_manifest(path)["figures"]["conversations"] == 15
    with pytest.raises(DataError, match=r"weights names other\.csv, which is not among the files: own\.csv"):
        tuned(tmp_path, checkpoint, "b", **values, rows__weights="{other.csv: 2}")
