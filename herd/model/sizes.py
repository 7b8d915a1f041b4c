"""Model sizes: Llama's shapes, a rule from depth to shape for all others, and the hyperparameters for a size.

A model of depth L is 64 L wide up to 12 layers and 128 L wide from 32 on, with a linear ratio in between. The rule
passes through shapes that are known to train well (GPT-2 small: 12 x 768; Llama 3 8B: 32 x 4,096).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from herd.model.config import ModelConfig, num_parameters

LLAMA3_ROWS = 128_256


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, **other) -> ModelConfig:
    """One of Meta's shapes, by default with Llama 3's vocabulary and RoPE base."""
    return ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feed_forward,
        **{"vocab_size": LLAMA3_ROWS, "tie_word_embeddings": False, "rope_theta": 500_000.0} | other,
    )


_LLAMA2 = {"vocab_size": 32_000, "rope_theta": 10_000.0}

LLAMAS: dict[str, ModelConfig] = {
    "1B": _llama(2048, 16, 32, 8, 8192, tie_word_embeddings=True),
    "3B": _llama(3072, 28, 24, 8, 8192, tie_word_embeddings=True),
    "8B": _llama(4096, 32, 32, 8, 14_336),
    "70B": _llama(8192, 80, 64, 8, 28_672),
    "405B": _llama(16_384, 126, 128, 8, 53_248),
    "llama2-7B": _llama(4096, 32, 32, 32, 11_008, **_LLAMA2),
    "llama2-13B": _llama(5120, 40, 40, 40, 13_824, **_LLAMA2),
    "llama2-70B": _llama(8192, 80, 64, 8, 28_672, **_LLAMA2),
}
"""Meta's released shapes: 1B and 3B are Llama 3.2's, 8B to 405B Llama 3's (paper, table 3)."""

PEAK_LEARNING_RATES = {"8B": 3e-4, "70B": 1.5e-4, "405B": 8e-5}
"""Source: The Llama 3 Herd of Models, table 3."""

_VOCABULARIES = ((30e6, 16_384), (100e6, 32_768), (500e6, 65_536), (math.inf, LLAMA3_ROWS))


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters for a model size: total tokens, tokens per step, peak learning rate, warm-up steps."""

    tokens: int
    batch_tokens: int
    learning_rate: float
    warmup_steps: int


def model_of_size(size: str) -> ModelConfig:
    """The shape for a size: one of Meta's by name, or the depth with the nearest number of parameters ("15M", "2.5B").

    The vocabulary is a usual one for that size; another one changes only the embedding.

    Raises:
        ValueError: it is not a size.
    """
    names, wish = {name.lower(): name for name in LLAMAS}, "".join(size.lower().split())
    if wish in names:
        return LLAMAS[names[wish]]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt])", wish)
    if not match:
        raise ValueError(f"{size} is no size: expected one like 15M, 125M or 2B, or one of {', '.join(LLAMAS)}")
    wanted = float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]]
    if not 1e6 <= wanted <= 1e13:
        raise ValueError(f"{size}: sizes are between 2M and 1.5T")
    rows = next(rows for limit, rows in _VOCABULARIES if wanted < limit)
    shapes = [model_of_depth(depth, rows) for depth in range(2, 201)]
    nearest = min(shapes, key=lambda shape: abs(math.log(num_parameters(shape) / wanted)))
    if abs(math.log(num_parameters(nearest) / wanted)) > math.log(1.5):
        raise ValueError(
            f"{size}: sizes are between 2M and 1.5T; the nearest has {num_parameters(nearest):,} parameters"
        )
    return nearest


def model_of_depth(depth: int, vocab_size: int = LLAMA3_ROWS) -> ModelConfig:
    """The shape for a number of layers: width as above, heads of 64 or 128 channels, about one key-value head per four
    query heads (at most eight), a feed-forward layer of 8/3 of the width; tied embeddings up to 28 layers, as in Llama
    3.2.

    Raises:
        ValueError: the depth is not between 2 and 1,000.
    """
    if not 2 <= depth <= 1000:
        raise ValueError(f"depth {depth}: a model has 2 to 1,000 layers")
    ratio = min(max(64 + 64 * (depth - 12) / 20, 64), 128)
    step = 64 if depth <= 12 else 256 if depth <= 20 else 512
    width = step * round(ratio * depth / step)
    head = 64 if width < 2048 else 128
    heads = width // head
    return ModelConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=max(k for k in range(1, 9) if heads % k == 0 and (heads // k >= 3 or k == 1)),
        intermediate_size=64 * math.ceil(8 * width / 3 / 64),
        head_dim=head,
        vocab_size=vocab_size,
        tie_word_embeddings=depth <= 28,
        rope_theta=500_000.0,
    )


@dataclass(frozen=True)
class FittedLaw:
    """Power laws as (factor, exponent), fitted to small runs: see `herd scaling fit`."""

    parameters: tuple[float, float]  # of FLOPs
    tokens: tuple[float, float]  # of FLOPs
    batch_tokens: tuple[float, float]  # of FLOPs
    learning_rate: tuple[float, float]  # of parameters


def fitted_hyperparameters(parameters: float, law: FittedLaw) -> Hyperparameters:
    """Hyperparameters for a number of parameters by a fitted law, at the compute budget for which that size is optimal.

    Warm-up as in `hyperparameters`.
    """
    compute = (parameters / law.parameters[0]) ** (1 / law.parameters[1])
    tokens = law.tokens[0] * compute ** law.tokens[1]
    batch_tokens = max(2 ** round(math.log2(law.batch_tokens[0] * compute ** law.batch_tokens[1])), 2048)
    rate = law.learning_rate[0] * parameters ** law.learning_rate[1]
    return _rounded(tokens, batch_tokens, rate)


def hyperparameters(parameters: float) -> Hyperparameters:
    """Hyperparameters for a number of parameters by the laws of the Llama 3 paper.

    Tokens: the compute-optimal number N*(C) = 0.299 C^0.537 with C = 6 P N* (section 3.2.1, figure 3's legend).
    Batch: 250K tokens at 6e18 FLOPs to 4M at 1e22, the range of the scaling runs, as a power law of compute.
    Learning rate: the power law through table 3's peaks of 8B and 405B. Warm-up: the scaling runs' 2,000 steps, but
    never more than a twentieth of the run.
    """
    exponent, factor = 0.537, 0.299
    tokens = (factor * (6 * parameters) ** exponent) ** (1 / (1 - exponent))
    compute = 6 * parameters * tokens
    batch = 250e3 * (compute / 6e18) ** (math.log(16) / math.log(1e22 / 6e18))
    batch_tokens = max(2 ** round(math.log2(min(batch, 16e6))), 2048)
    small, large = num_parameters(LLAMAS["8B"]), num_parameters(LLAMAS["405B"])
    slope = math.log(3e-4 / 8e-5) / math.log(large / small)
    rate = 3e-4 * (parameters / small) ** -slope
    return _rounded(tokens, batch_tokens, min(rate, 5e-3))


def _rounded(tokens: float, batch_tokens: int, rate: float) -> Hyperparameters:
    """Rounded as in a recipe, with the warm-up."""
    steps = max(tokens / batch_tokens, 1)
    return Hyperparameters(
        tokens=round(tokens),
        batch_tokens=batch_tokens,
        learning_rate=float(f"{rate:.2g}"),
        warmup_steps=max(1, min(2000, round(steps / 20))),
    )
