"""The commands of docs/weights.md, given to a small model."""

import io
from pathlib import Path

from herd import cli
from herd.formats import checkpoint
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weights.md"
NAME = "Llama-3.1-8B-Instruct"


def test_the_five_commands_work_in_their_order(tmp_path, monkeypatch, capsys):
    commands = [line.split()[1:] for line in PAGE.read_text().splitlines() if line.startswith("    herd ")][:5]
    assert [words[0] for words in commands] == ["inspect", "chat", "convert", "inspect", "chat"]
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.stop_ids,
    )
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    monkeypatch.chdir(tmp_path)
    checkpoint.save(model, NAME, tokenizer)
    for words in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("some words\n"))
        short = ["max_tokens=4"] if words[0] == "chat" else []
        assert cli.main([*words, *short]) == 0, capsys.readouterr().err
    assert "same likeliest token" in capsys.readouterr().out
