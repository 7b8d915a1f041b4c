"""`herd inspect`: what a checkpoint is, and what is odd about it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from herd.errors import CheckpointError
from herd.formats import checkpoint
from herd.formats.convert import convert
from herd.formats.examine import examine
from herd.formats.vocabulary import open_tokenizer
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.stages import inspect
from herd.tokenizer.tokenizer import Tokenizer


def folder_of(path, rows_more=0, **changes):
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + rows_more,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **({"eos_token_id": tokenizer.stop_ids} | changes),
    )
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    checkpoint.save(model, path, tokenizer, dtype=torch.bfloat16)
    return path


def test_a_sound_checkpoint_shows_its_shape_and_nothing_odd(tmp_path, capsys):
    folder = folder_of(tmp_path / "model")
    inspect.run(inspect.InspectSettings(path=folder))
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed and "2 of width 32, 4 heads of 8, 2 key-value" in printed
    assert "bfloat16 (20 tensors)" in printed and "tied to the output" in printed
    assert "Nothing odd." in printed


def test_what_a_configuration_leaves_out_is_shown_too(tmp_path, capsys):
    folder = folder_of(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_theta", "head_dim", "max_position_embeddings", "attention_bias"):
        del config[name]
    config["rope_parameters"] = {"rope_theta": 20_000.0, "rope_type": "linear", "factor": 2.0}  # of transformers 5
    (folder / "config.json").write_text(json.dumps(config))
    inspect.run(inspect.InspectSettings(path=folder))
    printed = capsys.readouterr().out
    assert "4 heads of 8, 2 key-value" in printed and "2,048 tokens, RoPE theta 20,000, scaled 2x (linear)" in printed


def test_the_json_form_holds_the_same_findings(tmp_path, capsys):
    folder = folder_of(tmp_path / "model")
    inspect.run(inspect.InspectSettings(path=folder, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == sum(p.numel() for p in checkpoint.load(folder).parameters())
    assert found["odd"] == [] and found["config"]["hidden_size"] == 32


def test_what_is_odd_is_listed(tmp_path):
    folder = folder_of(tmp_path / "model", rows_more=-8, eos_token_id=None)
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
        model.model.layers[0].mlp.up_proj.weight.zero_()
    checkpoint.save(model, folder)
    (folder / "generation_config.json").unlink()
    odd = "\n".join(examine(folder, weights=True)["odd"])
    for fault in ("no usable tokenizer", "no eos_token_id", "no generation_config", "not finite", "all zero"):
        assert fault in odd
    fewer = "\n".join(examine(folder_of(tmp_path / "fewer", rows_more=-8))["odd"])
    more = "\n".join(examine(folder_of(tmp_path / "more", rows_more=8))["odd"])
    assert "some tokens would crash the model" in fewer and "8 embedding rows have no token" in more


def test_a_path_without_a_checkpoint_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        examine(tmp_path)


def test_files_of_meta_and_of_llama_cpp_are_inspected_as_they_are(tmp_path, capsys):
    folder = folder_of(tmp_path / "model", rope_theta=10_000.0)
    convert(folder, tmp_path / "model.gguf", precision="q8_0")
    convert(folder, tmp_path / "meta", format="meta", shards=2)
    inspect.run(inspect.InspectSettings(path=tmp_path / "model.gguf", against=folder))
    printed = capsys.readouterr().out
    assert "GGUF" in printed and "Q8_0 (" in printed and "same top token" in printed
    found = examine(tmp_path / "meta")
    assert found["format"] == "meta" and found["config"]["num_hidden_layers"] == 2 and found["odd"] == []


def test_a_model_that_predicts_english_no_better_than_guessing_is_odd(tmp_path):
    (found,) = examine(folder_of(tmp_path / "model"), weights=True)["odd"]
    assert "no better than guessing (6." in found


@pytest.mark.parametrize("target, options", [("m.gguf", {"precision": "q4_0"}), ("meta", {"format": "meta"})])
def test_the_loaded_model_is_compared_with_its_file(target, options, tmp_path, capsys):
    convert(folder_of(tmp_path / "model"), tmp_path / target, **options)
    inspect.run(inspect.InspectSettings(path=tmp_path / target, weights=True))
    assert "beside the file itself: largest logit difference" in capsys.readouterr().out
    loaded = examine(tmp_path / target, weights=True)["loaded"]
    assert loaded["largest"] < 1e-4 and loaded["same_choice"] == 1.0


def test_a_few_rows_of_each_tensor_are_looked_at_without_being_asked(tmp_path):
    folder = folder_of(tmp_path / "model")
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[-1, 3] = torch.inf
    checkpoint.save(model, folder, open_tokenizer(folder))
    assert examine(folder)["odd"] == ["model.layers.0.mlp.down_proj.weight holds values that are not finite"]


def test_settings_that_belong_to_another_model_are_odd(tmp_path):
    changes = {"max_position_embeddings": 131_072, "bos_token_id": 5}
    odd = "\n".join(examine(folder_of(tmp_path / "long", **changes))["odd"])
    assert "without RoPE scaling" in odd and "bos_token_id 5 is not the tokenizer's 274" in odd
    odd = examine(folder_of(tmp_path / "short", rope_scaling=RopeScaling(), max_position_embeddings=8192))["odd"]
    assert odd == ["RoPE is scaled, though the context of 8,192 does not need it"]


def test_a_head_stored_beside_its_embedding_is_odd(tmp_path):
    folder = folder_of(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert "stored although it is tied" in "\n".join(examine(folder)["odd"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False, "dtype": "float32"}))
    odd = "\n".join(examine(folder)["odd"])
    assert "seems to be the embedding, stored twice" in odd and "declares float32, but the weights are bfloat16" in odd
