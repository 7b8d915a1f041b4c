"""A tiny chat model that can learn to write one word, prompts for it, and settings of a short run."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

from herd import config
from herd.formats.checkpoint import save
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.stages import rl
from herd.tokenizer.tokenizer import Tokenizer

WORDS = "say yes or no yes no 1 2 3 4 5 6 7 8 9 what is it"
SHORT = [
    "steps=4", "prompts_per_step=3", "samples=4", "answer_tokens=6", "batch.row_tokens=64", "batch.micro_tokens=256",
    "optimizer.learning_rate=1e-2", "saving.save_seconds=1e6", "dtype=fp32", "compile=off",
]  # fmt: skip


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 3, 540)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rest = {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "tie_word_embeddings": True}
    model = LlamaForCausalLM(ModelConfig(vocab_size=tokenizer().vocab_size, **shape, **rest))
    initialize(model, seed)
    return model.eval()


def prepared(folder: Path, seed: int = 0) -> Path:
    """A checkpoint and prompts in a folder."""
    save(tiny_model(seed), folder / "start", tokenizer())
    rows = [{"prompt": f"say {one}", "answer": str(one)} for one in range(1, 10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder: Path, *words: str, out: str = "run") -> rl.RlSettings:
    places = [f"checkpoint={folder / 'start'}", f"prompts={folder / 'prompts.jsonl'}", f"out={folder / out}"]
    return config.load(rl.RlSettings, None, [*places, *SHORT, *words])


def reward_file(folder: Path, text: str) -> Path:
    file = folder / "reward.py"
    file.write_text(text)
    return file


def all_same(first: LlamaForCausalLM, second: LlamaForCausalLM) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
