"""A tiny Llama, a small corpus and a run folder for the tests of training."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from herd.config import settings
from herd.data.loader import PackedLoader, Phase
from herd.data.shards import in_memory
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import empty_model
from herd.run import open_run

VOCABULARY = 96


@settings
class TinySettings:
    """Settings of a run in a test."""

    name: str = "tiny"
    """Anything."""


@contextmanager
def run_folder(path: Path):
    """An open run folder, as a stage has one."""
    with open_run(path, stage="tiny", settings=TinySettings(), inputs={}) as run:
        yield run


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A Llama of some 30,000 parameters."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "tie_word_embeddings": True,
    }
    model = empty_model(ModelConfig(**(shape | changes)), device="cpu")
    initialize(model, seed)
    return model.to(dtype)


def corpus(count: int = 60, seed: int = 0, source: str = "library"):
    """Documents whose next token can be learned: counting up from a random start, modulo the vocabulary."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        length, start = random.integers(3, 70), random.integers(3, VOCABULARY)
        texts.append(np.r_[1, 3 + (start + np.arange(length)) % (VOCABULARY - 3), 2])
    return in_memory(source, texts)


def tiny_loader(micro_tokens: int = 128, batch_tokens: int = 256, **options):
    """Two sources in rows of 32 tokens."""
    sources = {"library": corpus(), "pydoc": corpus(30, seed=1, source="pydoc")}
    phase = Phase(batch_tokens=batch_tokens, row_tokens=32, mixture={"library": 2.0, "pydoc": 1.0})
    return PackedLoader(sources, [phase], micro_tokens=micro_tokens, **options)
