"""The stages pack, sft, reward and dpo from end to end, on a few documents, conversations and pairs."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from herd.config import load as load_settings
from herd.data.conversations import load_conversations
from herd.data.loader import PackedLoader, Phase
from herd.data.shards import open_shards
from herd.data.split import is_held_out
from herd.errors import CheckpointError, ConfigError, DataError
from herd.formats import checkpoint as door
from herd.formats.checkpoint import load, save
from herd.formats.vocabulary import open_tokenizer
from herd.infer.quantize import quantize_folder
from herd.run import read_manifest
from herd.stages import dpo, pack, reward, sft
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.reference import read_log_probs
from herd.types import DOCUMENT_COLUMNS
from tests.train.tiny import tiny_model

ARROW = {"string": pa.string(), "large_string": pa.large_string(), "float": pa.float32()}
SCHEMA = pa.schema([(name, ARROW[kind]) for name, kind in DOCUMENT_COLUMNS.items()])
WORDS = ["the", "bees", "fly", "from", "the", "hive", "to", "the", "lime", "trees", "and", "carry", "pollen", "home"]


def text(number, length=12):
    return " ".join(WORDS[(number * 7 + i * (1 + number % 3)) % len(WORDS)] for i in range(length))


def document(number, **changes):
    row = dict.fromkeys(DOCUMENT_COLUMNS, "") | {"text": text(number), "source": "web", "group": f"page-{number}"}
    return row | {"quality": number / 100, "drop": None, "drop_detail": None} | changes


@pytest.fixture
def tokenizer(tmp_path):
    found = Tokenizer({bytes([byte]): byte for byte in range(256)})
    save_tokenizer(found, tmp_path / "tokenizer")
    return found


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    save(tiny_model(vocab_size=tokenizer.vocab_size), tmp_path / "base", tokenizer)
    return tmp_path / "base"


def documents(tmp_path, *files):
    (tmp_path / "documents").mkdir()
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / f"documents/{number}.parquet")
    return tmp_path / "documents"


def write_json(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(stage, name, **values):
    return load_settings(
        getattr(stage, name), None, [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    )


# ---- pack ------------------------------------------------------------------------------------------------------------


def run_pack(tmp_path, folder, **changes):
    values = {"documents": folder, "tokenizer": tmp_path / "tokenizer", "out": tmp_path / "pack", "holdout": 0.3}
    return pack.run(settings_of(pack, "PackSettings", **(values | changes)))


def test_kept_documents_become_shards_and_whole_groups_are_held_out(tmp_path, tokenizer):
    rows = [document(n, source="ab"[n % 2]) for n in range(40)] + [document(99, drop="too short")]
    path = run_pack(tmp_path, documents(tmp_path, rows[:25], rows[25:]))
    found = {side: open_shards(path / side) for side in ("train", "heldout")}
    texts = {
        side: {
            tokenizer.decode(docs.tokens(i).tolist(), skip_special=True)
            for docs in sources.values()
            for i in range(len(docs))
        }
        for side, sources in found.items()
    }
    for row in rows[:-1]:
        assert row["text"] in texts["heldout" if is_held_out(row["group"], 0.3) else "train"]
    first = found["train"]["a"].tokens(0)
    assert first[0] == tokenizer.bos_id and first[-1] == tokenizer.eos_id
    figures = read_manifest(path)["figures"]
    assert figures["train_documents"] + figures["heldout_documents"] == 40
    assert json.loads((path / "index.json").read_text())["train"]["a"]["bytes"] == found["train"]["a"].num_bytes.sum()


def test_an_interrupted_packing_keeps_the_files_it_finished(tmp_path, tokenizer, monkeypatch):
    folder = documents(tmp_path, [document(n) for n in range(5)], [document(n) for n in range(5, 9)])
    whole = run_pack(tmp_path, folder, out=tmp_path / "whole")
    encode, calls = Tokenizer.encode_arrays, []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*arguments, **options)

    monkeypatch.setattr(Tokenizer, "encode_arrays", counted)
    with pytest.raises(KeyboardInterrupt):
        run_pack(tmp_path, folder)
    path = run_pack(tmp_path, folder)
    assert len(calls) == 3
    assert read_manifest(path)["outputs"].keys() == read_manifest(whole)["outputs"].keys()
    assert read_manifest(path)["figures"] == read_manifest(whole)["figures"]


def test_a_corpus_of_which_nothing_was_kept_is_refused(tmp_path, tokenizer):
    folder = documents(tmp_path, [document(1, drop="too short")])
    with pytest.raises(DataError, match="no document was kept"):
        run_pack(tmp_path, folder)


@pytest.mark.parametrize("case", ["empty", "not parquet", "other columns"])
def test_a_folder_that_holds_no_documents_is_refused(tmp_path, tokenizer, case):
    folder = tmp_path / "documents"
    folder.mkdir()
    if case == "empty":
        (folder / "x.txt").write_text("x")
    elif case == "not parquet":
        (folder / "x.parquet").write_text("x")
    else:
        pq.write_table(pa.table({"text": ["a"]}), folder / "x.parquet")
    with pytest.raises(DataError, match=r"no Parquet files|cannot be read as Parquet|lacks the column"):
        run_pack(tmp_path, folder)


# ---- post-training ---------------------------------------------------------------------------------------------------

QUICK = {"batch__tokens": 512, "batch__row_tokens": 256, "optimizer__learning_rate": 1e-2}


def conversations(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": text(n, 4)}, {"role": "assistant", "content": text(n, 3)}]}
        for n in range(20)
    ]
    return write_json(tmp_path / "conversations.jsonl", rows)


def pairs(tmp_path):
    rows = [
        {
            "prompt": f"{number} {text(number, 3)}",
            "chosen": "bees",
            "rejected": text(number, 3),
            "kind": "xy"[number % 2],
        }
        for number in range(40)
    ]
    return write_json(tmp_path / "pairs.jsonl", rows)


def test_sft_lowers_its_loss_and_its_checkpoint_loads_with_its_tokenizer(tmp_path, checkpoint):
    values = {"conversations": conversations(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "sft", "epochs": 8}
    path = sft.run(settings_of(sft, "SftSettings", **values, **QUICK))
    first = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert read_manifest(path)["figures"]["loss"] < 0.8 * first
    assert open_tokenizer(path / "checkpoint").vocab_size == load(path).config.vocab_size
    assert not (path / "state").exists()


def test_a_reward_model_ranks_held_out_pairs_and_is_saved_as_one(tmp_path, checkpoint):
    values = {
        "pairs": pairs(tmp_path),
        "checkpoint": checkpoint,
        "out": tmp_path / "reward",
        "epochs": 20,
        "holdout": 0.3,
    }
    path = reward.run(settings_of(reward, "RewardSettings", **values, **QUICK))
    figures = read_manifest(path)["figures"]
    assert figures["heldout_accuracy"] > 0.8
    assert {"heldout_accuracy/x", "heldout_accuracy/y"} <= figures.keys()
    assert load(path).score.weight.shape == (1, 32)


def test_general_text_is_mixed_into_sft_beside_as_many_conversations(tmp_path, tokenizer, checkpoint):
    packed = run_pack(tmp_path, documents(tmp_path, [document(n) for n in range(30)]))
    given = {"conversations": conversations(tmp_path), "checkpoint": checkpoint, "epochs": 2}
    alone = sft.run(settings_of(sft, "SftSettings", **given, **QUICK, out=tmp_path / "alone"))
    mixed = sft.run(settings_of(sft, "SftSettings", **given, **QUICK, out=tmp_path / "m", text=packed, text_share=0.5))
    steps = [json.loads((path / "run.json").read_text())["figures"]["steps"] for path in (alone, mixed)]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1)
    assert any("text web" in key for line in (mixed / "metrics.jsonl").open() for key in json.loads(line))


def test_dpo_begins_at_its_reference_and_widens_the_margin(tmp_path, checkpoint):
    values = {"pairs": pairs(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "dpo", "epochs": 4}
    path = dpo.run(settings_of(dpo, "DpoSettings", **values, **QUICK))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["margin"] > 0.1
    figures = json.loads((path / "run.json").read_text())["figures"]
    assert {"chosen_gain_nats", "rejected_tokens", "answer_words_after", "refused_before", "warnings"} <= {*figures}
    assert figures["rejected_gain_nats"] < figures["chosen_gain_nats"]
    assert not torch.equal(load(path).model.embed_tokens.weight, load(checkpoint).model.embed_tokens.weight)


def test_dpo_takes_the_reference_that_the_data_brings(tmp_path, checkpoint):
    rows = [json.loads(line) | {"ref_chosen": -1.0, "ref_rejected": -2.0} for line in pairs(tmp_path).open()]
    file = write_json(tmp_path / "with.jsonl", rows)
    values = {"pairs": file, "checkpoint": checkpoint, "out": tmp_path / "dpo"}
    path = dpo.run(settings_of(dpo, "DpoSettings", **values, **QUICK))
    assert not (path / "reference.npy").exists()
    assert json.loads((path / "metrics.jsonl").open().readline())["margin"] != pytest.approx(0.0, abs=1e-3)


def test_a_finished_stage_is_skipped_and_a_missing_checkpoint_is_named(tmp_path, checkpoint):
    values = {"conversations": conversations(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "sft", "epochs": 1}
    path = sft.run(settings_of(sft, "SftSettings", **values, **QUICK))
    stamp = (path / "checkpoint/model.safetensors").stat().st_mtime_ns
    sft.run(settings_of(sft, "SftSettings", **values, **QUICK))
    assert (path / "checkpoint/model.safetensors").stat().st_mtime_ns == stamp
    wrong = values | {"checkpoint": tmp_path / "documents-of-nowhere", "out": tmp_path / "other"}
    with pytest.raises((CheckpointError, DataError), match="documents-of-nowhere"):
        sft.run(settings_of(sft, "SftSettings", **wrong, **QUICK))


def test_a_checkpoint_is_looked_for_once_on_its_way_to_the_trainer(tmp_path, checkpoint, monkeypatch):
    seen, find = [], door.find_checkpoint
    monkeypatch.setattr(door, "find_checkpoint", lambda path: seen.append(path) or find(path))
    rows = {"sft": {"conversations": conversations(tmp_path)}, "dpo": {"pairs": pairs(tmp_path)}}
    for stage, name in ((sft, "SftSettings"), (dpo, "DpoSettings"), (reward, "RewardSettings")):
        values = rows["sft" if stage is sft else "dpo"] | {"checkpoint": checkpoint, "out": tmp_path / name}
        stage.run(settings_of(stage, name, **values, **QUICK))
    assert seen == [checkpoint] * 3


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_quantized_weights_are_refused_before_anything_is_learned(tmp_path, tokenizer, scheme):
    save(tiny_model(vocab_size=tokenizer.vocab_size, num_hidden_layers=3), tmp_path / "base", tokenizer)
    quantize_folder(tmp_path / "base", tmp_path / "small", scheme)
    values = {"conversations": conversations(tmp_path), "checkpoint": tmp_path / "small", "out": tmp_path / "sft"}
    with pytest.raises(CheckpointError, match="quantized already; give the original weights"):
        sft.run(settings_of(sft, "SftSettings", **values, **QUICK))


def test_weights_in_8_bit_floats_with_scales_are_learned_as_bfloat16(tmp_path, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        scale = weights[name].float().abs().amax(1, keepdim=True) / 448
        weights[name], weights[f"{name}_scale"] = (weights[name].float() / scale).to(torch.float8_e4m3fn), scale
    save_file(weights, checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "fbgemm_fp8"}})
    )
    values = {"conversations": conversations(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "sft"}
    path = sft.run(settings_of(sft, "SftSettings", **values, **QUICK))
    assert load(path).config.quantization_config is None


@pytest.mark.parametrize("ramp", ["[0.6]", "[0.2, 0.4]"])
def test_epochs_count_the_smaller_steps_of_a_batch_ramp(tmp_path, checkpoint, ramp):
    values = {"conversations": conversations(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "sft", "epochs": 40}
    path = sft.run(settings_of(sft, "SftSettings", **values, **QUICK, batch__double_at=ramp))
    tokens = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["tokens"]
    sources = load_conversations(values["conversations"], open_tokenizer(checkpoint), 256)
    loader = PackedLoader(sources, [Phase(batch_tokens=512, row_tokens=256, mixture={"conversations": 1.0})])
    assert tokens == pytest.approx(40 * loader.epoch_tokens(), rel=0.02)


@pytest.mark.parametrize("stage", [sft, reward, dpo])
def test_rows_into_which_not_everything_fits_are_refused_where_nothing_may_be_cut(stage):
    name = stage.__name__.rpartition(".")[2].capitalize() + "Settings"
    given = {"sft": "conversations"}.get(stage.__name__.rpartition(".")[2], "pairs")
    ramp = {"batch__double_at": "[0.5]", "batch__first_row_tokens": 64}
    with pytest.raises(ConfigError, match="first_row_tokens is only for pretrain"):
        settings_of(stage, name, **{given: "[x]"}, checkpoint="x", out="x", **ramp)


def test_a_damaged_reference_is_one_clear_error(tmp_path, checkpoint):
    file = tmp_path / "reference.npy"
    for content in (b"", bytes(200), b"x"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="delete it, and the reference log-probabilities are computed again"):
            read_log_probs(file, 4)


def test_a_reward_model_is_no_language_model_to_train(tmp_path, checkpoint):
    given = {"pairs": pairs(tmp_path), "checkpoint": checkpoint, "out": tmp_path / "reward", "holdout": 0.0}
    model = reward.run(settings_of(reward, "RewardSettings", **given, **QUICK))
    values = {"conversations": conversations(tmp_path), "checkpoint": model, "out": tmp_path / "sft"}
    with pytest.raises(CheckpointError, match="is a reward model, but this stage trains a language model"):
        sft.run(settings_of(sft, "SftSettings", **values, **QUICK))
    with pytest.raises(CheckpointError, match="is a reward model, but this stage trains a language model"):
        values = {"pairs": given["pairs"], "checkpoint": model, "out": tmp_path / "dpo"}
        dpo.run(settings_of(dpo, "DpoSettings", **values, **QUICK))


def test_too_little_data_is_said_with_settings_that_make_more_steps(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    rows = [{"prompt": text(n), "completion": text(n + 1)} for n in range(10)]
    values = {"conversations": write_json(tmp_path / "rows.jsonl", rows), "checkpoint": checkpoint, "epochs": 1}
    options = {"batch__tokens": 8192, "batch__row_tokens": 256, "optimizer__learning_rate": 0.01}
    path = sft.run(settings_of(sft, "SftSettings", out=tmp_path / "one", **values, **options))
    said = capsys.readouterr().err
    assert read_manifest(path)["figures"]["steps"] == 1
    assert "the data give only 1 step, too few" in said and "batch.tokens=256" in said and "epochs=20" in said
    before, after = load_file(checkpoint / "model.safetensors"), load_file(path / "checkpoint/model.safetensors")
    moved = max(float((after[name].float() - before[name].float()).abs().max()) for name in before)
    assert moved > 0.005  # Adam's first step is as long as the rate: at its peak, not at the last step's share
