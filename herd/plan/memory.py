"""Memory on the device that needs most, by part.

Counts what Herd's trainer keeps: weights in the training dtype, float32 masters, moments and gradient sums, and the
tensors that the model's operations save for the backward pass (`herd.model.llama`, `herd.ops`). With adapters the
weights are frozen, sharded or in 4 bits, and only adapters have state; with bfloat16 state weights are their own
masters, and gradients and moments are bfloat16 too.
"""

from __future__ import annotations

import math

from herd.model.config import CAUSAL_LM, ModelConfig
from herd.ops.attention import KEPT_BYTES, QUERIES
from herd.ops.cross_entropy import CHUNK_LOGITS, MIN_CHUNK_TOKENS
from herd.ops.nf4 import BLOCK
from herd.plan.cluster import Device
from herd.plan.layout import ModelChunk, PlanLayout, chunks, micro_batches, of_rank
from herd.train.lora import adapter_parameters, matrix_shapes
from herd.train.optimizer import UPDATE_CHUNK, OptimizerSettings

FLOAT = 4
RUNTIME_BYTES = {"cpu": 0.33e9, "gpu": 2.5e9}
"""Memory of a process without a model: libraries and threads; on a GPU the CUDA context, NCCL and cuBLAS."""
FRAGMENTATION = 0.04
"""Share of a GPU's memory lost to fragmentation."""


_DEQUANTIZING = 16
"""Temporary bytes per weight while a 4-bit matrix is dequantized: codes, indices, values."""


_NARROW_UPDATE = 32
"""Temporary float32 bytes per weight of a chunk of a bfloat16 update: four inputs, a root, noise, two results."""


def layer_parameters(config: ModelConfig) -> int:
    """Weights of one block, norms included."""
    c = config
    attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    return attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size


def saved_per_token(config: ModelConfig, recompute: str = "off") -> int:
    """Elements that one block saves per token for its backward pass (attention scores are recomputed).

    off:   input, its norm, q, k, v, attention's output, the stream after it, its norm, gate, up, silu(gate), product
    light: without the norms, silu(gate) and its product, which a compiled block recomputes by itself
    full:  only the input
    """
    c = config
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "off": 4 * c.hidden_size + 2 * queries + 2 * keys + 4 * c.intermediate_size,
        "light": 3 * c.hidden_size + 2 * queries + 2 * keys + 2 * c.intermediate_size,
        "full": c.hidden_size,
    }[recompute]


def memory_by_part(
    config: ModelConfig,
    layout: PlanLayout,
    row_tokens: int,
    batch_rows: int,
    *,
    width: int = 2,
    on_gpu: bool = True,
    optimizer: OptimizerSettings | None = None,
) -> dict[str, float]:
    """Bytes by part on the pipeline rank that needs most; `width` is the bytes of a weight (2 bf16, 4 fp32).

    `optimizer` says what is trained, all weights or adapters, and the dtype of its state.
    """
    optimizer = optimizer or OptimizerSettings()
    cut = chunks(config, layout)
    ranks = range(layout.pipeline)
    needs = [_of_rank(config, layout, cut, rank, row_tokens, batch_rows, width, on_gpu, optimizer) for rank in ranks]
    return max(needs, key=lambda parts: sum(parts.values()))


def fits(parts: dict[str, float], device: Device) -> bool:
    """Whether these parts fit on a device, fragmentation included."""
    return sum(parts.values()) <= device.memory * (1 - FRAGMENTATION)


def _of_rank(
    config: ModelConfig,
    layout: PlanLayout,
    cut: list[ModelChunk],
    rank: int,
    row_tokens: int,
    batch_rows: int,
    width: int,
    on_gpu: bool,
    optimizer: OptimizerSettings,
) -> dict[str, float]:
    mine = of_rank(cut, layout, rank)
    parameters = sum(_parameters(config, chunk) for chunk in mine) / layout.tensor
    largest = max(layer_parameters(config), _parameters(config, ModelChunk(0, mine[0].embedding, mine[-1].head)))
    unit = largest / layout.tensor
    tokens = layout.micro_rows * row_tokens / (layout.context * layout.tensor)
    held = _layers_held(layout, mine, rank, micro_batches(layout, batch_rows))
    kept = saved_per_token(config, layout.recompute)
    if layout.recompute != "full":
        kept += optimizer.lora.rank * len(optimizer.lora.targets)
    parts = {
        **_learned(config, layout, parameters, unit, width, optimizer),
        "activations": width * tokens * kept * held + _again(config, layout, tokens, width),
        "scores": 0.0 if on_gpu else width * _scores_kept(config, layout, row_tokens, width) * held,
        "head": _head(config, layout, tokens, width, optimizer) if mine[-1].head else 0.0,
        "logits": _logits(config, layout, tokens, width, on_gpu) if mine[-1].head else 0.0,
        "runtime": RUNTIME_BYTES["gpu" if on_gpu else "cpu"],
    }
    if optimizer.state == "bf16" and not optimizer.lora.rank:
        passing = sum(parts[name] for name in ("activations", "scores", "head", "logits"))
        parts["update"] = max(_NARROW_UPDATE * min(parameters, UPDATE_CHUNK) - passing, 0.0)
    return parts


def _learned(
    config: ModelConfig, layout: PlanLayout, parameters: float, unit: float, width: int, optimizer: OptimizerSettings
) -> dict[str, float]:
    """Weights, and the optimizer's state of those that are trained."""
    narrow = optimizer.state == "bf16"
    state = width if narrow else FLOAT
    if optimizer.lora.rank:
        adapters = adapter_parameters(config, optimizer.lora)
        return {
            "weights": _frozen(config, layout, parameters, unit, width, optimizer),
            "adapters": width * adapters,
            "masters": 0.0 if narrow or width == FLOAT else FLOAT * adapters / layout.shards,
            "moments": 2 * state * adapters / layout.shards,
            "gradients": (state if narrow else FLOAT + width) * adapters,
            "dequantized": _DEQUANTIZING * _largest_matrix(config) if optimizer.lora.base == "nf4" else 0.0,
        }
    return {
        "weights": width * (parameters / layout.shards + 2 * unit if layout.reshard else parameters),
        "masters": 0.0 if narrow or width == FLOAT else FLOAT * parameters / layout.shards,
        "moments": 2 * state * parameters / layout.shards,
        "gradients": state * parameters if narrow else _gradients(parameters, unit, layout, width),
    }


def _frozen(
    config: ModelConfig, layout: PlanLayout, parameters: float, unit: float, width: int, optimizer: OptimizerSettings
) -> float:
    """Frozen weights under adapters: shards and what is gathered of them, or 4 bits with a scale per block."""
    if optimizer.lora.base != "nf4":
        gathered = 0.0 if layout.shards == 1 else 2 * unit if layout.reshard else parameters
        return width * (parameters / layout.shards + gathered)
    shapes = matrix_shapes(config)
    packed = config.num_hidden_layers * sum(math.prod(shapes[name]) for name in set(optimizer.lora.targets))
    return width * (parameters - packed) + packed * (0.5 + FLOAT / BLOCK)


def _largest_matrix(config: ModelConfig) -> int:
    return max(math.prod(shape) for shape in matrix_shapes(config).values())


def _parameters(config: ModelConfig, chunk: ModelChunk) -> int:
    rows = config.vocab_size * config.hidden_size
    head = chunk.head and config.architecture == CAUSAL_LM  # a reward model's head has one row
    shared = chunk.embedding and head and config.tie_word_embeddings
    ends = rows * (chunk.embedding + head - shared) + config.hidden_size * chunk.head
    return chunk.layers * layer_parameters(config) + ends


def _gradients(parameters: float, unit: float, layout: PlanLayout, width: int) -> float:
    """Float32 sums over micro-batches, unsharded if weights stay gathered, and the new gradients of a backward pass.

    New gradients are added one by one as they are computed, with FSDP unit by unit.
    """
    if layout.shards == 1:
        return FLOAT * parameters + width * unit
    return (
        FLOAT * parameters / layout.shards + 2 * FLOAT * unit if layout.reshard else FLOAT * parameters + width * unit
    )


def _layers_held(layout: PlanLayout, mine: list[ModelChunk], rank: int, count: int) -> float:
    """Layers whose activations a pipeline rank holds at once: those of one micro-batch, or of all in flight.

    Interleaved: 2 (PP - 1 - rank) + (V - 1) N + 1 chunk passes before the first backward pass; plain 1F1B: PP - rank.
    """
    layers = sum(chunk.layers for chunk in mine)
    if layout.pipeline == 1:
        return layers
    behind = layout.pipeline - 1 - rank
    contiguous = layout.contiguous or layout.pipeline
    passes = 2 * behind + (layout.virtual - 1) * contiguous + 1 if layout.virtual > 1 else behind + 1
    return layers / layout.virtual * min(passes, layout.virtual * count)


def _again(config: ModelConfig, layout: PlanLayout, tokens: float, width: int) -> float:
    """Activations of a recomputed layer during its backward pass."""
    return 0.0 if layout.recompute == "off" else width * tokens * saved_per_token(config)


def _scores_kept(config: ModelConfig, layout: PlanLayout, row_tokens: int, width: int) -> float:
    """Attention weights that a layer keeps on the CPU, if they are few enough (`herd.ops.attention`)."""
    blocks = -(-row_tokens // QUERIES)
    seen = QUERIES * QUERIES * blocks * (blocks + 1) / 2  # a block of queries attends to all keys up to its last
    scores = layout.micro_rows * config.num_attention_heads * seen
    return scores if width * scores <= KEPT_BYTES else 0.0


def _head(config: ModelConfig, layout: PlanLayout, tokens: float, width: int, optimizer: OptimizerSettings) -> float:
    """The head's gradient in float32 and rounded (none if frozen), hidden states and their gradient."""
    if config.architecture != CAUSAL_LM:
        return 0.0
    rows = 0.0 if optimizer.lora.rank else config.vocab_size * config.hidden_size / layout.tensor
    return (FLOAT + width) * rows + 3 * width * tokens * layout.tensor * config.hidden_size


def _logits(config: ModelConfig, layout: PlanLayout, tokens: float, width: int, on_gpu: bool) -> float:
    """The logits of one chunk of tokens and their softmax (`herd.ops.cross_entropy`); never of all tokens at once."""
    if config.architecture != CAUSAL_LM:
        return 0.0
    rows = config.vocab_size / layout.tensor
    chunk = max(MIN_CHUNK_TOKENS, CHUNK_LOGITS["cuda" if on_gpu else "cpu"] / rows)
    return 2 * width * rows * min(tokens * layout.tensor, chunk)
