"""`herd inspect`: what a checkpoint is, and what is odd about it."""

import json

import pytest
import torch

from herd.errors import CheckpointError
from herd.model import checkpoint
from herd.model.config import ModelConfig
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
    inspect.run(inspect.InspectSettings(path=folder, weights=True))
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed and "2 of width 32, 4 heads of 8, 2 key-value" in printed
    assert "bfloat16 (20 tensors)" in printed and "tied to the output" in printed
    assert "Nothing odd." in printed


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
    odd = "\n".join(inspect.examine(folder, weights=True)["odd"])
    for fault in ("no usable tokenizer", "no eos_token_id", "no generation_config", "not finite", "all zero"):
        assert fault in odd
    fewer = "\n".join(inspect.examine(folder_of(tmp_path / "fewer", rows_more=-8))["odd"])
    more = "\n".join(inspect.examine(folder_of(tmp_path / "more", rows_more=8))["odd"])
    assert "some tokens would crash the model" in fewer and "8 embedding rows have no token" in more


def test_a_path_without_a_checkpoint_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        inspect.examine(tmp_path)
