"""Layouts of a model and a batch on the devices: four dimensions of parallelism.

Source: The Llama 3 Herd of Models, section 3.3.2 and table 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herd.model.config import ModelConfig
from herd.parallel.layout import layers_of_stages
from herd.parallel.settings import ParallelSettings

Recompute = Literal["off", "light", "full"]


@dataclass(frozen=True)
class PlanLayout:
    """Sizes of the tensor, context, pipeline and data dimensions, innermost first, and related settings.

    Groups of `data / replicas` data ranks each shard one copy of weights, gradients and optimizer state. `virtual` is
    V, the model chunks of a pipeline rank; `contiguous` is N, the consecutive micro-batches of a chunk (0: as many as
    pipeline ranks). `reshard` frees gathered weights after the forward pass. `recompute` is what the backward pass
    recomputes: nothing (eager PyTorch), cheap operations (norms and SwiGLU, as the compiler does by itself), or whole
    layers (`recompute=1`). `layers` is the number of layers of each chunk; empty: evenly.
    """

    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    data: int = 1
    virtual: int = 1
    contiguous: int = 0
    micro_rows: int = 1
    reshard: bool = False
    recompute: Recompute = "off"
    replicas: int = 1
    layers: tuple[int, ...] = ()

    @property
    def devices(self) -> int:
        return self.tensor * self.context * self.pipeline * self.data

    @property
    def shards(self) -> int:
        """Number of ranks that share the optimizer state: those of data and context, which have the same weights."""
        return self.data // self.replicas * self.context

    @property
    def parallel(self) -> ParallelSettings:
        """The trainer's settings for one copy of the model."""
        shard = max(self.data // self.replicas, 1)
        return ParallelSettings(shard=shard, tensor=self.tensor, context=self.context, pipeline=self.pipeline)

    def __str__(self) -> str:
        text = f"TP {self.tensor} · CP {self.context} · PP {self.pipeline} · DP {self.data}"
        text += f" ({self.replicas} copies)" if self.replicas > 1 else ""
        text += f" · V {self.virtual}" if self.pipeline > 1 else ""
        text += f" · {self.micro_rows} rows" if self.micro_rows > 1 else ""
        return (
            text
            + (" · reshard" if self.reshard else "")
            + (f" · recompute {self.recompute}" * (self.recompute != "off"))
        )


@dataclass(frozen=True)
class ModelChunk:
    """Consecutive layers on one pipeline rank, perhaps with the embedding or the head."""

    layers: int
    embedding: bool = False
    head: bool = False


def chunks(config: ModelConfig, layout: PlanLayout) -> list[ModelChunk]:
    """The model's chunks in a pipeline, as the trainer makes them, first to last: chunk i is on rank i modulo PP."""
    settings = ParallelSettings(pipeline=layout.pipeline, interleave=layout.virtual, layers=list(layout.layers))
    held = layers_of_stages(config, settings)
    return [
        ModelChunk(len(layers), embedding=index == 0, head=index == len(held) - 1) for index, layers in enumerate(held)
    ]


def of_rank(cut: list[ModelChunk], layout: PlanLayout, rank: int) -> list[ModelChunk]:
    """The chunks of one pipeline rank."""
    return cut[rank :: layout.pipeline]


def faults(config: ModelConfig, layout: PlanLayout, row_tokens: int, batch_rows: int) -> list[str]:
    """Why this layout does not fit the model or the batch; empty if it does."""
    found = []
    if layout.data % layout.replicas:
        found.append(f"{layout.replicas} copies do not divide DP {layout.data}")
    if config.num_key_value_heads % layout.tensor or config.num_attention_heads % layout.tensor:
        found.append(f"TP {layout.tensor} does not divide the {config.num_key_value_heads} key-value heads")
    if config.intermediate_size % layout.tensor or config.vocab_size % layout.tensor:
        found.append(f"TP {layout.tensor} does not divide the feed-forward width or the vocabulary")
    if layout.tensor > 1 and (config.attention_bias or config.mlp_bias):
        found.append(f"TP {layout.tensor} does not support this model's biases")
    if row_tokens % (2 * layout.context * layout.tensor if layout.context > 1 else layout.tensor):
        found.append(
            f"rows of {row_tokens} tokens cannot be split into 2 x CP {layout.context} x TP {layout.tensor} parts"
        )
    if not layout.layers and layout.pipeline * layout.virtual > config.num_hidden_layers + 2:
        found.append(f"PP {layout.pipeline} x V {layout.virtual} chunks, but only {config.num_hidden_layers} layers")
    if layout.layers and sum(layout.layers) != config.num_hidden_layers:
        found.append(f"layers {list(layout.layers)} do not sum to the model's {config.num_hidden_layers}")
    if layout.pipeline > 1 and config.tie_word_embeddings:
        found.append(f"PP {layout.pipeline} needs a separate output projection, but tie_word_embeddings is true")
    if layout.virtual > 1 and layout.pipeline == 1:
        found.append("V above 1 needs a pipeline")
    if batch_rows % layout.data or layout.micro_rows > batch_rows // layout.data:
        found.append(
            f"{batch_rows} rows per step do not split over DP {layout.data} x {layout.micro_rows} rows at a time"
        )
    return found


def micro_batches(layout: PlanLayout, batch_rows: int) -> int:
    """M: micro-batches per step of a data-parallel rank, the last one perhaps with fewer rows."""
    return -(-batch_rows // (layout.data * layout.micro_rows))
