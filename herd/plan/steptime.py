"""The time of one optimizer step, by term: arithmetic, communication that does not overlap with it, pipeline bubble.

One constant, `EFFICIENCY`, is fitted to one figure: the 430 TFLOP/s of the first row of the Llama 3 paper's table 4.
Everything else follows from shapes, data sheets and the schedule, so that the table's other rows are predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.model.config import ModelConfig
from herd.model.flops import flops_per_token, matmul_parameters
from herd.plan.cluster import Device
from herd.plan.layout import ModelChunk, PlanLayout, chunks, micro_batches, of_rank
from herd.plan.memory import layer_parameters
from herd.train.lora import adapter_parameters
from herd.train.optimizer import OptimizerSettings

EFFICIENCY = 0.5634
"""Share of the peak rate that a device's arithmetic reaches, elementwise operations included."""
LINK_EFFICIENCY = 0.8
"""Share of a link's nominal rate that a large collective reaches."""
ATTENTION_WORK = 7 / 6
"""Attention's computed FLOPs over those counted: its backward pass recomputes the scores (5 matmuls, 4 counted)."""
_AGAIN = {"off": 1.0, "light": 1.02, "full": 4 / 3}  # light recomputes only elementwise operations
_BF16, _FLOAT = 2, 4
_NARROW_PASSES = 214  # bytes moved per weight by an update of bfloat16 state: conversion, update, noise and rounding
_DEQUANTIZED = 47  # bytes moved per weight by dequantizing 4 bits: codes, indices, values, products


@dataclass(frozen=True)
class StepTime:
    """Seconds by term; `mfu` is the step's model FLOPs over the devices' peak in that time."""

    terms: dict[str, float]
    mfu: float
    tokens: int

    @property
    def seconds(self) -> float:
        return sum(self.terms.values())


def step_time(
    config: ModelConfig,
    layout: PlanLayout,
    device: Device,
    row_tokens: int,
    batch_rows: int,
    efficiency: float = EFFICIENCY,
    optimizer: OptimizerSettings | None = None,
) -> StepTime:
    """The time of a step of `batch_rows` rows, determined by the slowest pipeline rank.

    Frozen weights have no gradients, which saves a third of the FLOPs of their matmuls.
    """
    optimizer = optimizer or OptimizerSettings()
    cut, count = chunks(config, layout), micro_batches(layout, batch_rows)
    ranks = [of_rank(cut, layout, rank) for rank in range(layout.pipeline)]
    passes = [_one_pass(config, layout, device, mine, row_tokens, efficiency, optimizer) for mine in ranks]
    slowest = max(passes, key=lambda terms: sum(terms.values()))
    terms = {name: count * seconds for name, seconds in slowest.items()}
    if layout.pipeline > 1:
        terms["bubble"] = (layout.pipeline - 1) / layout.virtual * sum(slowest.values())
    learned = _learned(config, layout, cut, optimizer)
    terms["data parallel"] = _data_parallel(config, layout, device, cut, count, learned, sum(terms.values()))
    terms["data parallel"] += _copies(layout, device, learned, optimizer)
    terms["optimizer"] = _optimizer(layout, device, learned, optimizer)
    tokens = batch_rows * row_tokens
    work = (flops_per_token(config, row_tokens) - _unlearned(config, optimizer)) * tokens
    return StepTime(terms, work / (layout.devices * device.flops * sum(terms.values())), tokens)


def _one_pass(
    config: ModelConfig,
    layout: PlanLayout,
    device: Device,
    mine: list[ModelChunk],
    row_tokens: int,
    efficiency: float,
    optimizer: OptimizerSettings,
) -> dict[str, float]:
    """Forward and backward pass of one micro-batch through the chunks of one rank."""
    tokens = layout.micro_rows * row_tokens / layout.context
    layers, has_head = sum(chunk.layers for chunk in mine), mine[-1].head
    rate = device.flops * efficiency * layout.tensor
    attention = flops_per_token(config, row_tokens) - 6 * matmul_parameters(config)
    share = layers / config.num_hidden_layers
    matmuls = 6 * (layer_parameters(config) - 2 * config.hidden_size) * layers - share * _unlearned(config, optimizer)
    head = matmul_parameters(config) - config.num_hidden_layers * (layer_parameters(config) - 2 * config.hidden_size)
    matmuls += 6 * head * has_head
    again = _AGAIN[layout.recompute]
    packed = layers * (layer_parameters(config) if optimizer.lora.rank and optimizer.lora.base == "nf4" else 0)
    return {
        "matmuls": again * matmuls * tokens / rate,
        "attention": again * ATTENTION_WORK * attention * share * tokens / rate,
        "4-bit weights": _DEQUANTIZED * (3 if layout.recompute == "full" else 2) * packed / device.memory_bandwidth,
        "tensor parallel": layers * _tensor_parallel(config, layout, device, tokens),
        "context parallel": layers * _context_parallel(config, layout, device, tokens),
    }


def _tensor_parallel(config: ModelConfig, layout: PlanLayout, device: Device, tokens: float) -> float:
    """With sequence parallelism a layer has four gathers and scatters of activations forward, six backward.

    The two more gather again for the weights' gradients. None of them overlaps with arithmetic.
    """
    if layout.tensor == 1:
        return 0.0
    collectives = 10 + (4 if layout.recompute == "full" else 0)
    moved = tokens * config.hidden_size * _BF16 * (layout.tensor - 1) / layout.tensor
    return collectives * moved / _link(device, layout.tensor)


def _context_parallel(config: ModelConfig, layout: PlanLayout, device: Device, tokens: float) -> float:
    """Keys and values are gathered before attention, again in the backward pass, and their gradients are reduced."""
    if layout.context == 1:
        return 0.0
    keys = 2 * config.num_key_value_heads * config.head_dim / layout.tensor
    moved = tokens * (layout.context - 1) * keys * _BF16
    return 3 * moved / _link(device, layout.tensor * layout.context)


def _data_parallel(
    config: ModelConfig,
    layout: PlanLayout,
    device: Device,
    cut: list[ModelChunk],
    count: int,
    learned: float,
    busy: float,
) -> float:
    """Gathering weights (bf16) and reducing the gradients of those that are `learned` (float32): the part that does not
    overlap with arithmetic, and the first unit.

    Weights that stay gathered are gathered once per step; resharded ones twice per micro-batch, with a reduction of
    gradients in each.
    """
    if layout.shards == 1:
        return 0.0
    weights, gradients = _BF16 * _largest(config, layout, cut), _FLOAT * learned * layout.shards
    link = _link(device, layout.devices) * layout.shards / (layout.shards - 1)
    total = (2 * count * weights + count * gradients if layout.reshard else weights + gradients) / link
    first = (weights + gradients) / (layout.virtual if layout.pipeline > 1 else config.num_hidden_layers) / link
    return max(total - busy, 0.0) + first


def _copies(layout: PlanLayout, device: Device, learned: float, optimizer: OptimizerSettings) -> float:
    """The all-reduce of gradients over copies of the model once per step, as a ring."""
    width = _BF16 if optimizer.state == "bf16" else _FLOAT
    return 2 * (layout.replicas - 1) / layout.replicas * width * learned / _link(device, layout.devices)


def _optimizer(layout: PlanLayout, device: Device, learned: float, optimizer: OptimizerSettings) -> float:
    """AdamW reads and writes masters, moments and gradients once, limited by memory bandwidth."""
    passes = 2 * (3 * _FLOAT) + _FLOAT + _BF16
    return (_NARROW_PASSES if optimizer.state == "bf16" else passes) * learned / device.memory_bandwidth


def _learned(config: ModelConfig, layout: PlanLayout, cut: list[ModelChunk], optimizer: OptimizerSettings) -> float:
    """Trained weights per rank."""
    if optimizer.lora.rank:
        return adapter_parameters(config, optimizer.lora) / layout.shards
    return _largest(config, layout, cut) / layout.shards


def _unlearned(config: ModelConfig, optimizer: OptimizerSettings) -> float:
    """FLOPs per token saved by frozen blocks (2 of 6 per weight), minus those of their adapters."""
    if not optimizer.lora.rank:
        return 0.0
    blocks = config.num_hidden_layers * (layer_parameters(config) - 2 * config.hidden_size)
    return 2 * blocks - 6 * adapter_parameters(config, optimizer.lora)


def _largest(config: ModelConfig, layout: PlanLayout, cut: list[ModelChunk]) -> float:
    """Weights of the largest pipeline rank, per tensor-parallel rank."""
    rows = config.vocab_size * config.hidden_size
    return (
        max(
            sum(chunk.layers * layer_parameters(config) + rows * (chunk.embedding or chunk.head) for chunk in mine)
            for mine in (of_rank(cut, layout, rank) for rank in range(layout.pipeline))
        )
        / layout.tensor
    )


def _link(device: Device, span: int) -> float:
    """Bytes per second of a collective over `span` adjacent ranks, by the slowest link among them."""
    return LINK_EFFICIENCY * (device.inner_link if span <= device.per_server else device.outer_link)
