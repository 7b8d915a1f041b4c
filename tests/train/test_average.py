import json

import pytest
import torch

from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import load, save
from herd.train.average import average
from tests.train.tiny import tiny_model


def saved(folder, seed, dtype=torch.float32, **changes):
    model = tiny_model(seed, dtype, **changes)
    save(model, folder)
    return model


def test_the_average_is_the_mean_of_every_weight(tmp_path):
    models = [saved(tmp_path / str(seed), seed) for seed in range(3)]
    result = load(average([tmp_path / str(seed) for seed in range(3)], tmp_path / "mean"))
    for name, tensor in result.named_parameters():
        expected = torch.stack([model.get_parameter(name) for model in models]).mean(0)
        torch.testing.assert_close(tensor, expected)


def test_weights_say_how_much_each_counts(tmp_path):
    models = [saved(tmp_path / str(seed), seed) for seed in range(2)]
    result = load(average([tmp_path / "0", tmp_path / "1"], tmp_path / "mean", weights=[3.0, 1.0]))
    expected = 0.75 * models[0].model.embed_tokens.weight + 0.25 * models[1].model.embed_tokens.weight
    torch.testing.assert_close(result.model.embed_tokens.weight, expected)


def test_sums_of_bfloat16_weights_are_taken_in_float32(tmp_path):
    models = [saved(tmp_path / str(seed), seed, torch.bfloat16) for seed in range(8)]
    result = load(average([tmp_path / str(seed) for seed in range(8)], tmp_path / "mean"))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = torch.stack([model.get_parameter(name).float() for model in models]).mean(0).bfloat16()
    torch.testing.assert_close(result.get_parameter(name), expected)


def test_shards_and_companions_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("herd.formats.checkpoint.MAX_SHARD_BYTES", 20_000)
    saved(tmp_path / "0", 0)
    monkeypatch.undo()
    saved(tmp_path / "1", 1)
    (tmp_path / "0/tokenizer.json").write_text("{}")
    average([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    assert {file.name for file in (tmp_path / "mean").iterdir()} == {file.name for file in (tmp_path / "0").iterdir()}
    load(tmp_path / "mean")


def test_checkpoints_of_other_shapes_are_refused(tmp_path):
    saved(tmp_path / "0", 0)
    saved(tmp_path / "1", 1, intermediate_size=128)
    with pytest.raises(CheckpointError, match=r"cannot be averaged.*shape"):
        average([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_checkpoints_of_other_rotary_settings_are_refused(tmp_path):
    saved(tmp_path / "0", 0)
    saved(tmp_path / "1", 0)
    file = tmp_path / "1/config.json"
    file.write_text(file.read_text().replace(json.dumps(json.loads(file.read_text())["rope_theta"]), "77.0"))
    with pytest.raises(CheckpointError, match="RoPE"):
        average([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")


def test_nothing_to_average_and_weights_that_do_not_fit_are_refused(tmp_path):
    saved(tmp_path / "0", 0)
    with pytest.raises(ConfigError, match="no checkpoints"):
        average([], tmp_path / "mean")
    with pytest.raises(ConfigError, match="needs 1 weights"):
        average([tmp_path / "0"], tmp_path / "mean", weights=[1.0, 2.0])
