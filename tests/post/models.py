"""A tiny chat model, a tiny reward model and a small run of questions, for the tests of post-training."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from herd.data.rows import write_rows
from herd.demo.facts import Fact
from herd.demo.questions import QuestionSets, make_questions, ranked
from herd.formats.checkpoint import save
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.model.reward import as_reward_model
from herd.tokenizer.tokenizer import Tokenizer

WORDS = "What does mod1.open do? Open the thing with care. It takes no arguments. path, mode='r' Which parameters"


@functools.cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 3, 600)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    config = ModelConfig(
        vocab_size=small_tokenizer().vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    initialize(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def save_model(folder: Path, seed: int = 0) -> Path:
    save(tiny_model(seed), folder, small_tokenizer())
    return folder


def save_reward_model(folder: Path, seed: int = 0) -> Path:
    model = as_reward_model(tiny_model(seed), seed)
    with torch.no_grad():
        model.score.weight.normal_(0, 1, generator=torch.Generator().manual_seed(seed))
    save(model, folder, small_tokenizer())
    return folder


def question_sets(num_modules: int = 20) -> QuestionSets:
    """Questions about made-up modules, a fifth of which are held out."""
    facts = []
    for number in range(num_modules):
        module = f"mod{number}"
        facts.append(
            Fact(name=module, kind="module", module=module, group=module, summary=f"All about the thing {number}.")
        )
        for word, parameters in (("open", "path, mode='r'"), ("close", ""), ("Reader", None)):
            summary = f"{word.title()} the thing {number} with care."
            name, kind = f"{module}.{word}", "function"
            facts.append(
                Fact(name=name, kind=kind, module=module, group=module, summary=summary, parameters=parameters)
            )
    return make_questions(
        ranked(facts, {}), holdout=0.2, max_facts=60, max_questions=24, wordings=2, subject="some things"
    )


def write_questions(folder: Path) -> Path:
    for name, rows in vars(question_sets()).items():
        write_rows(folder / f"{name}.jsonl", rows)
    return folder
