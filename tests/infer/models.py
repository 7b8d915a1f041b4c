"""Tiny random models and a small tokenizer for the engine's tests."""

from __future__ import annotations

import functools

import torch

from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer import Tokenizer

TEXT = (
    "The quick brown fox jumps over the lazy dog. def main(argument): return os.path.join(argument, 'naïve café')\n"
    "Grüße aus Köln, 日本語 and ελληνικά; numbers 123 456 789, emoji 🦙🦙. What does this function do? It joins paths. "
)


@functools.cache
def small_tokenizer() -> Tokenizer:
    """256 bytes, a few merges, 256 special tokens."""
    return Tokenizer.train([TEXT] * 3, 600)


def tiny_config(**changes) -> ModelConfig:
    """A two-layer Llama over the small tokenizer's vocabulary."""
    shape = {
        "vocab_size": small_tokenizer().vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    return ModelConfig(**{**shape, **changes})


SHAPES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "every head its own": {"num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1},
    "scaled rope": {"rope_theta": 10_000.0, "rope_scaling": RopeScaling(original_max_position_embeddings=32)},
    "wide heads": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def tiny_model(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random model in eval mode; the spread of its weights is wide, so that its text is not one token repeated."""
    model = LlamaForCausalLM(tiny_config(**changes))
    initialize(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed + 1))
    return model.eval()
