"""The commands of docs/weights.md, given to a small model."""

import io
from pathlib import Path

from herd import cli
from herd.formats import checkpoint
from herd.formats.convert import convert
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weights.md"
FILE, FOLDER, META = "SmolLM2-135M-Instruct.Q4_1.gguf", "Llama-3.1-8B-Instruct", "Meta-Llama-3-8B"


def test_the_first_commands_work_in_their_order(tmp_path, monkeypatch, capsys):
    lines = [line.partition("#")[0] for line in PAGE.read_text().splitlines() if line.startswith("    herd ")]
    commands = [line.split()[1:] for line in lines][:7]
    assert [words[0] for words in commands] == ["inspect"] * 3 + ["chat", "convert", "convert", "inspect"]
    assert [words[1] for words in commands[:3]] == [FILE, FOLDER, META]
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
    checkpoint.save(model, FOLDER, tokenizer)
    convert(FOLDER, FILE)
    convert(FOLDER, META, format="meta")
    for words in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("some words\n"))
        short = ["max_tokens=4"] if words[0] == "chat" else []
        assert cli.main([*words, *short]) == 0, capsys.readouterr().err
    assert "same top token" in capsys.readouterr().out
