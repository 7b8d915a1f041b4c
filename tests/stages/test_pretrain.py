from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd import config
from herd.data.shards import ShardWriter
from herd.errors import CheckpointError, ConfigError, DataError
from herd.formats.vocabulary import open_tokenizer
from herd.model.config import ModelConfig
from herd.run import read_manifest, read_metrics
from herd.stages import average, pretrain
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer
from herd.train import job

TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Shards and tokenizer of a small repetitive text."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = Tokenizer.train([TEXT * 3], 540)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for side, count in (("train", 40), ("heldout", 3)):
        (folder / "shards" / side).mkdir(parents=True)
        writer = ShardWriter(folder / "shards" / side, "code", 0, tokenizer=tokenizer.fingerprint)
        for number in range(count):
            text = TEXT.replace("1", str(number))
            writer.add(tokenizer.encode(text, bos=True, eos=True), num_bytes=len(text.encode()))
        writer.close()
    return folder


def settings(corpus: Path, out: Path, *words: str):
    shape = "model.hidden_size=32 model.num_hidden_layers=2 model.intermediate_size=64 model.num_attention_heads=2"
    batch = "batch.row_tokens=64 batch.tokens=256 batch.micro_tokens=128 optimizer.learning_rate=1e-2"
    places = [f"shards={corpus / 'shards'}", f"tokenizer={corpus / 'tokenizer'}", f"out={out}"]
    defaults = [*places, *shape.split(), *batch.split(), "dtype=fp32", "tokens=6000"]
    return config.load(pretrain.PretrainSettings, None, [*defaults, *words])


def test_pretraining_longer_context_and_average_follow_one_another(corpus, tmp_path):
    first = pretrain.run(settings(corpus, tmp_path / "first", "prompts=['def']", "saving.snapshots=3"))
    rows = read_metrics(first)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    figures = read_manifest(first)["figures"]
    assert 0 < figures["heldout_bits_per_byte"] < 4
    samples = (first / "training_samples.jsonl").read_text().splitlines()
    assert len(samples) == 3  # at 25, 50 and 100 %

    words = [f"checkpoint={first}", "batch.row_tokens=256", "model.rope_theta=1e6", "tokens=1024"]
    longer = pretrain.run(settings(corpus, tmp_path / "longer", *words))
    grown = ModelConfig.from_folder(longer / "checkpoint")
    assert (grown.max_position_embeddings, grown.rope_theta) == (256, 1e6)

    mean = average.run(average.AverageSettings(checkpoints=[first], out=tmp_path / "mean", last=2))
    assert read_manifest(mean)["figures"] == {"checkpoints": 2}
    assert open_tokenizer(mean / "checkpoint").vocab_size == 540


def test_a_second_run_is_skipped_and_another_setting_is_refused(corpus, tmp_path):
    pretrain.run(settings(corpus, tmp_path / "run", "tokens=512"))
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    pretrain.run(settings(corpus, tmp_path / "run", "tokens=512"))
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="tokens: 512"):
        pretrain.run(settings(corpus, tmp_path / "run", "tokens=1024"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.num_attention_heads=3", "num_attention_heads"),
        ("model.num_key_value_heads=3", "num_key_value_heads"),
        ("mixture={web: 1}", "web"),
    ],
)
def test_impossible_settings_are_refused_before_training(corpus, tmp_path, word, message):
    with pytest.raises(ConfigError, match=message):
        pretrain.run(settings(corpus, tmp_path / "run", word))


def test_a_checkpoint_with_another_vocabulary_is_refused(corpus, tmp_path):
    first = pretrain.run(settings(corpus, tmp_path / "first", "tokens=512"))
    save_tokenizer(Tokenizer.train([TEXT], 520), tmp_path / "other")
    with pytest.raises(ConfigError, match="540 embedding rows"):
        pretrain.run(settings(corpus, tmp_path / "second", f"checkpoint={first}", f"tokenizer={tmp_path / 'other'}"))


def test_a_stopped_run_goes_on_with_other_settings_of_how_but_not_of_what(corpus, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "finish", stop)
        pretrain.run(settings(corpus, tmp_path / "run", "tokens=512"))
    how = ["saving.save_seconds=3", "saving.hang_seconds=60", "stability.action=skip", "batch.micro_tokens=64"]
    with pytest.raises(CheckpointError, match="row_tokens: 64 there, 128 now") as refused:
        pretrain.run(settings(corpus, tmp_path / "run", "tokens=512", "batch.row_tokens=128", *how))
    assert "save_seconds" not in str(refused.value)
    assert read_manifest(pretrain.run(settings(corpus, tmp_path / "run", "tokens=512", *how)))["state"] == "finished"


def test_shards_of_another_tokenizer_are_refused(corpus, tmp_path):
    save_tokenizer(Tokenizer.train([TEXT[::-1] * 3], 540), tmp_path / "other")
    with pytest.raises(ConfigError, match="packed with another tokenizer"):
        pretrain.run(settings(corpus, tmp_path / "run", f"tokenizer={tmp_path / 'other'}"))


def test_a_batch_of_more_tokens_than_the_run_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"less than one step's batch\.tokens"):
        settings(corpus, tmp_path / "run", "batch.tokens=1000000000000")


@pytest.mark.parametrize(
    "word",
    [
        "mixture_at={1.5: {code: 1}}",
        "model.initializer_range=-1",
        "model.embedding_range=-1",
        "optimizer.eps=-1",
        "saving.snapshots=-1",
        "saving.keep_snapshots=-1",
        "recompute=-1",
        "saving.hang_seconds=-1",
        "saving.save_seconds=0",
        "skip_steps=[twelve]",
        "tokens=nan",
        "optimizer.learning_rate=inf",
    ],
)
def test_settings_that_no_run_can_have_are_refused_before_its_folder_is_made(corpus, tmp_path, word):
    with pytest.raises((ConfigError, DataError), match=word.split("=")[0].split(".")[-1].split("_")[0]):
        settings(corpus, tmp_path / "run", word)


def test_a_run_that_was_refused_is_tried_again_with_other_settings_in_the_same_folder(corpus, tmp_path):
    with pytest.raises(ConfigError, match="num_attention_heads"):
        pretrain.run(settings(corpus, tmp_path / "run", "model.num_attention_heads=3"))
    assert read_manifest(pretrain.run(settings(corpus, tmp_path / "run", "tokens=512")))["state"] == "finished"


def test_a_finished_run_of_before_the_settings_were_renamed_is_still_finished(corpus, tmp_path):
    path = pretrain.run(settings(corpus, tmp_path / "run", "tokens=512", "saving.keep_snapshots=3"))
    manifest = json.loads((path / "run.json").read_text())
    new = manifest["settings"]
    saving = new.pop("saving")
    top = ("seed", "dtype", "compile", "recompute", "prompts", "stability", "skip_steps")
    old = {name: new.pop(name) for name in top}
    old |= {name: value for name, value in saving.items() if name not in ("log_steps", "keep_best")}
    (path / "run.json").write_text(json.dumps(manifest | {"settings": new | {"run": old}}))
    words = ["tokens=512", "saving.keep_snapshots=3"]
    assert pretrain.run(settings(corpus, tmp_path / "run", *words)) == path
    with pytest.raises(CheckpointError, match=r"saving\.keep_snapshots: 3 there, 4 now"):
        pretrain.run(settings(corpus, tmp_path / "run", "tokens=512", "saving.keep_snapshots=4"))


def test_the_demos_recipe_trains_on_anybodys_shards(corpus, tmp_path):
    places = [f"shards={corpus / 'shards'}", f"tokenizer={corpus / 'tokenizer'}", f"out={tmp_path / 'run'}"]
    recipe = config.find_recipe(Path("demo/pretrain.yaml"))
    wanted = config.load(pretrain.PretrainSettings, recipe, [*places, "tokens=4096", "dtype=fp32"])
    assert read_manifest(pretrain.run(wanted))["figures"]["tokens"] >= 4096


def test_a_budget_of_flops_is_spent_whatever_the_size_and_what_it_learned_from_is_recorded(corpus, tmp_path):
    spent = []
    for width in (16, 32):
        words = [f"model.hidden_size={width}", "flops=1e9", "batch.tokens=128"]
        run = pretrain.run(settings(corpus, tmp_path / str(width), *words))
        figures = read_manifest(run)["figures"]
        spent.append((figures["flops"], figures["tokens"], figures["parameters"]))
    assert [flops for flops, _, _ in spent] == pytest.approx([1e9, 1e9], rel=0.05)
    assert spent[0][1] > 1.3 * spent[1][1] and spent[0][2] < spent[1][2]
    record = json.loads((run / "sources.json").read_text())
    assert record["sources"]["code"]["share"] == 1 and len(record["sources"]["code"]["sha256"]) == 16
    assert record["heldout"]["bits_per_byte"]["code"] == pytest.approx(figures["heldout_bits_per_byte"], abs=1e-3)
    with pytest.raises(ConfigError, match="less than one step's"):
        pretrain.run(settings(corpus, tmp_path / "little", "flops=1e6"))


def test_a_run_that_would_see_its_data_too_often_is_left_out_by_name(corpus, tmp_path):
    run = pretrain.run(settings(corpus, tmp_path / "run", "tokens=20000", "max_epochs=2"))
    assert "go through `code`" in read_manifest(run)["figures"]["left_out"]
    assert not (run / "checkpoint").exists() and read_metrics(run) == []


def test_an_annealing_mix_that_holds_a_train_split_is_refused_outside_of_a_probe(corpus, tmp_path):
    first = pretrain.run(settings(corpus, tmp_path / "first", "tokens=512"))
    (tmp_path / "bench").mkdir()
    row = json.dumps({"question": TEXT.replace("1", "7")})
    (tmp_path / "bench" / "train.jsonl").write_text(row + "\n")
    words = [f"checkpoint={first}", "schedule.shape=linear", "schedule.final_share=0", "tokens=512"]
    words.append(f"benchmarks={tmp_path / 'bench'}")
    with pytest.raises(ConfigError, match=r"`code` holds 100% of train.jsonl.*probe=true"):
        pretrain.run(settings(corpus, tmp_path / "anneal", *words))
    assert (
        read_manifest(pretrain.run(settings(corpus, tmp_path / "probe", *words, "probe=true")))["state"] == "finished"
    )
    (tmp_path / "bench" / "train.jsonl").write_text(
        json.dumps({"question": "Nothing of it stands there at all. " * 9}) + "\n"
    )
    assert read_manifest(pretrain.run(settings(corpus, tmp_path / "clean", *words)))["state"] == "finished"
