"""`herd quantize`, from a checkpoint and shards to a measured int8 copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from herd.data.shards import ShardWriter
from herd.errors import DataError
from herd.formats.checkpoint import save
from herd.infer.engine import Engine
from herd.infer.quantize import quantize_folder
from herd.stages.quantize import QuantizeSettings, run
from tests.infer.models import TEXT, small_tokenizer, tiny_model


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path) -> Path:
    tokenizer = small_tokenizer()
    folder = tmp_path / "pack" / "heldout"
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, "library", 0, tokenizer=tokenizer.fingerprint)
    for _ in range(4):
        writer.add(tokenizer.encode(TEXT * 3, bos=True, eos=True), num_bytes=len(TEXT.encode()) * 3)
    writer.close()
    return tmp_path / "pack"


def test_the_copy_opens_and_its_figures_stand_beside_the_originals(tmp_path, checkpoint, shards):
    out = run(QuantizeSettings(checkpoint=checkpoint, shards=shards, out=tmp_path / "out"))
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert figures["weights_bytes_after"] < figures["weights_bytes_before"]
    assert figures["decode_tokens_per_second_after"] > 0
    before, after = figures["heldout_bits_per_byte_before"], figures["heldout_bits_per_byte_after"]
    assert before > 1 and abs(before - after) < 0.02
    assert 0 <= figures["kl_nats_per_token"] < 0.01 and figures["same_likeliest_token"] > 0.9
    assert Engine(out).generate("The quick").tokens


@pytest.mark.parametrize("scheme", ["int4", "fp8"])
def test_other_schemes_are_measured_in_the_same_way(tmp_path, checkpoint, shards, scheme):
    out = run(QuantizeSettings(checkpoint=checkpoint, shards=shards, out=tmp_path / "out", scheme=scheme))
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert figures["kl_nats_per_token"] < 0.4 and figures["decode_tokens_per_second_after"] > 0
    assert Engine(out).generate("The quick").tokens


def test_without_shards_only_size_and_speed_are_measured(tmp_path, checkpoint):
    out = run(QuantizeSettings(checkpoint=checkpoint, out=tmp_path / "out"))
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert "size_ratio" in figures and "heldout_bits_per_byte_before" not in figures


def test_a_model_that_does_not_fit_into_memory_is_quantized_and_not_timed(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    monkeypatch.setattr("herd.evals.quantized.available_memory", lambda device: 100_000)
    out = run(QuantizeSettings(checkpoint=checkpoint, out=tmp_path / "out"))
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert "size_ratio" in figures and not any(name.startswith("decode") for name in figures)
    assert "the speed before is not measured" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "words"), [(27, "File too large"), (28, "No space left")])
def test_a_full_disk_is_told_of_as_such_and_leaves_nothing(tmp_path, checkpoint, monkeypatch, number, words):
    def full(*_, **__):
        raise SafetensorError(f"Error while serializing: I/O error: {words} (os error {number})")

    monkeypatch.setattr("herd.formats.safetensors.save_file", full)
    with pytest.raises(OSError, match=words) as error:
        quantize_folder(checkpoint, tmp_path / "small")
    assert error.value.errno == number and not (tmp_path / "small").exists()


def test_a_folder_that_is_no_pack_run_is_refused(tmp_path, checkpoint):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "index.json").write_text("{}")
    with pytest.raises(DataError, match="herd pack"):
        run(QuantizeSettings(checkpoint=checkpoint, shards=tmp_path / "pack", out=tmp_path / "out"))


def test_rewards_of_answers_stand_beside_the_originals(tmp_path):
    from tests.post.models import save_model, save_reward_model

    save_model(tmp_path / "model")
    save_reward_model(tmp_path / "reward")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What does it do?"}\n{"prompt": "Which parameters"}\n')
    given = {"reward": tmp_path / "reward", "prompts": tmp_path / "prompts.jsonl", "answers": 12, "answer_tokens": 6}
    also = QuantizeSettings(checkpoint=tmp_path / "model", out=tmp_path / "out", also=("fp8",), **given)
    out = run(also)
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert figures["reward_answers"] == figures["reward_answers/fp8"] == 12
    assert figures["reward_before"] == figures["reward_before/fp8"]
    assert not list(out.rglob("copy-*"))
    with pytest.raises(ValueError, match="also is for the comparison of rewards"):
        QuantizeSettings(checkpoint=tmp_path / "model", out=tmp_path / "out", also=("int4",))
    assert figures["reward_change_low"] <= figures["reward_change_high"]
    assert (
        figures["reward_before_5_percent"] <= figures["reward_before_50_percent"] <= figures["reward_before_95_percent"]
    )
