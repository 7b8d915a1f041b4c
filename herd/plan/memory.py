"""Bytes on the fullest device, part by part.

Counts what Herd's trainer really keeps: weights in the training type, float32 masters, moments and gradient sums, and
the tensors that the model's own operations save for the backward pass (`herd.model.llama`, `herd.ops`).
"""

from __future__ import annotations

from herd.model.config import ModelConfig
from herd.ops.attention import KEPT_BYTES, QUERIES
from herd.plan.cluster import Device
from herd.plan.layout import Chunk, Layout, chunks, micro_batches, of_rank

FLOAT = 4
RUNTIME_BYTES = {"cpu": 0.33e9, "gpu": 2.5e9}
"""What a process takes before it has a model: libraries and threads; on a GPU the CUDA context, NCCL and cuBLAS."""
FRAGMENTATION = 0.04
"""Share of a GPU's memory that its allocator cannot hand out."""


def layer_parameters(config: ModelConfig) -> int:
    """Weights of one block, norms included."""
    c = config
    attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    return attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size


def saved_per_token(config: ModelConfig, recompute: str = "off") -> int:
    """Elements that one block saves of one token for its backward pass (attention scores are recomputed).

    off:   input, its norm, q, k, v, attention's output, the stream after it, its norm, gate, up, silu(gate), product
    light: without the norms, silu(gate) and its product, which a compiled block computes again by itself
    full:  the input alone
    """
    c = config
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "off": 4 * c.hidden_size + 2 * queries + 2 * keys + 4 * c.intermediate_size,
        "light": 3 * c.hidden_size + 2 * queries + 2 * keys + 2 * c.intermediate_size,
        "full": c.hidden_size,
    }[recompute]


def memory_by_part(
    config: ModelConfig, layout: Layout, row_tokens: int, batch_rows: int, *, width: int = 2, on_gpu: bool = True
) -> dict[str, float]:
    """Bytes by part on the pipeline rank that needs most; `width` is the size of a weight (2 bf16, 4 fp32)."""
    cut = chunks(config, layout)
    ranks = range(layout.pipeline)
    needs = [_of_rank(config, layout, cut, rank, row_tokens, batch_rows, width, on_gpu) for rank in ranks]
    return max(needs, key=lambda parts: sum(parts.values()))


def fits(parts: dict[str, float], device: Device) -> bool:
    """Whether these parts fit into a device, its allocator's waste considered."""
    return sum(parts.values()) <= device.memory * (1 - FRAGMENTATION)


def _of_rank(
    config: ModelConfig,
    layout: Layout,
    cut: list[Chunk],
    rank: int,
    row_tokens: int,
    batch_rows: int,
    width: int,
    on_gpu: bool,
) -> dict[str, float]:
    mine = of_rank(cut, layout, rank)
    parameters = sum(_parameters(config, chunk) for chunk in mine) / layout.tensor
    largest = max(layer_parameters(config), _parameters(config, Chunk(0, mine[0].embedding, mine[-1].head)))
    unit = largest / layout.tensor
    tokens = layout.micro_rows * row_tokens / (layout.context * layout.tensor)
    held = _layers_held(layout, mine, rank, micro_batches(layout, batch_rows))
    return {
        "weights": width * (parameters / layout.shards + 2 * unit if layout.reshard else parameters),
        "masters": FLOAT * parameters / layout.shards if width < FLOAT else 0.0,
        "moments": 2 * FLOAT * parameters / layout.shards,
        "gradients": _gradients(parameters, unit, layout, width),
        "activations": width * tokens * saved_per_token(config, layout.recompute) * held
        + _again(config, layout, tokens, width),
        "scores": 0.0 if on_gpu else width * _scores_kept(config, layout, row_tokens, width) * held,
        "head": _head(config, layout, tokens, width) if mine[-1].head else 0.0,
        "runtime": RUNTIME_BYTES["gpu" if on_gpu else "cpu"],
    }


def _parameters(config: ModelConfig, chunk: Chunk) -> int:
    rows = config.vocab_size * config.hidden_size
    shared = chunk.embedding and chunk.head and config.tie_word_embeddings
    ends = rows * (chunk.embedding + chunk.head - shared) + config.hidden_size * chunk.head
    return chunk.layers * layer_parameters(config) + ends


def _gradients(parameters: float, unit: float, layout: Layout, width: int) -> float:
    """Float32 sums over the micro-batches, whole where weights stay gathered, and the fresh ones of a backward pass.

    On one device the fresh gradients of all weights exist before they are added; FSDP adds them unit by unit.
    """
    if layout.shards == 1:
        return (FLOAT + width) * parameters
    return (
        FLOAT * parameters / layout.shards + 2 * FLOAT * unit if layout.reshard else FLOAT * parameters + width * unit
    )


def _layers_held(layout: Layout, mine: list[Chunk], rank: int, count: int) -> float:
    """Layer activations alive at once on a pipeline rank: all layers of one micro-batch, or what is in flight.

    Interleaved: 2 (PP - 1 - rank) + (V - 1) N + 1 chunk passes before the first backward pass; plain 1F1B: PP - rank.
    """
    layers = sum(chunk.layers for chunk in mine)
    if layout.pipeline == 1:
        return layers
    behind = layout.pipeline - 1 - rank
    contiguous = layout.contiguous or layout.pipeline
    passes = 2 * behind + (layout.virtual - 1) * contiguous + 1 if layout.virtual > 1 else behind + 1
    return layers / layout.virtual * min(passes, layout.virtual * count)


def _again(config: ModelConfig, layout: Layout, tokens: float, width: int) -> float:
    """What a layer under recomputation holds while its backward pass runs."""
    return 0.0 if layout.recompute == "off" else width * tokens * saved_per_token(config)


def _scores_kept(config: ModelConfig, layout: Layout, row_tokens: int, width: int) -> float:
    """Attention weights that a layer keeps on the CPU, where they are few enough (`herd.ops.attention`)."""
    blocks = -(-row_tokens // QUERIES)
    seen = QUERIES * QUERIES * blocks * (blocks + 1) / 2  # a block of queries sees all keys up to its last
    scores = layout.micro_rows * config.num_attention_heads * seen
    return scores if width * scores <= KEPT_BYTES else 0.0


def _head(config: ModelConfig, layout: Layout, tokens: float, width: int) -> float:
    """The last stage's loss: the output weight's gradient in float32 and rounded, hidden states and their gradient."""
    rows = config.vocab_size * config.hidden_size / layout.tensor
    return (FLOAT + width) * rows + 3 * width * tokens * layout.tensor * config.hidden_size
