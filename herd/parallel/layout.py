"""Which rank does what, as pure arithmetic without PyTorch, so that one process can inspect 16,384 ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from herd.errors import ConfigError
from herd.model.config import CAUSAL_LM, ModelConfig
from herd.model.scaling import DynamicScaling, LongScaling
from herd.parallel.settings import DIMENSIONS, ParallelSettings


@dataclass(frozen=True)
class RankLayout:
    """Sizes of the dimensions, innermost first, and each rank's index in them."""

    sizes: dict[str, int]

    @classmethod
    def of(cls, settings: ParallelSettings, world: int) -> RankLayout:
        """The layout of `world` processes; `replicas` 0 uses all processes.

        Raises:
            ConfigError: the sizes do not multiply to `world`.
        """
        replicas = settings.replicas or max(world // settings.of_one_copy, 1)
        sizes = {name: replicas if name == "replicas" else getattr(settings, name) for name in settings.order}
        layout = cls(sizes)
        if layout.world != world:
            product = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "1"
            raise ConfigError(
                f"parallel: {product} needs {layout.world} processes, but there "
                f"{'is' if world == 1 else 'are'} {world}; set `torchrun --nproc-per-node` accordingly, or change "
                "the sizes"
            )
        return layout

    @property
    def world(self) -> int:
        """Number of processes."""
        product = 1
        for size in self.sizes.values():
            product *= size
        return product

    def place(self, rank: int) -> dict[str, int]:
        """A rank's index in each dimension."""
        place = {}
        for name, size in self.sizes.items():
            rank, place[name] = divmod(rank, size)
        return place

    def rank(self, place: dict[str, int]) -> int:
        """The rank with these indices."""
        rank, stride = 0, 1
        for name, size in self.sizes.items():
            rank += place[name] * stride
            stride *= size
        return rank

    def group(self, rank: int, *names: str) -> list[int]:
        """The ranks that differ from `rank` only in the named dimensions; the last named varies fastest."""
        place = self.place(rank)
        indices = itertools.product(*(range(self.sizes[name]) for name in names))
        return [self.rank(place | dict(zip(names, index))) for index in indices]

    def groups(self, *names: str) -> Iterator[list[int]]:
        """All groups along these dimensions."""
        for rank in range(self.world):
            place = self.place(rank)
            if not any(place[name] for name in names):
                yield self.group(rank, *names)

    @property
    def num_data(self) -> int:
        """Number of processes, or groups of them, with different rows."""
        return self.sizes["shard"] * self.sizes["replicas"]

    def data_index(self, rank: int) -> int:
        """Which of the `num_data` shares of the rows a rank has."""
        place = self.place(rank)
        return place["replicas"] * self.sizes["shard"] + place["shard"]

    def index_in_shards(self, rank: int) -> int:
        """Which shard of the weights a rank has: FSDP's dimension is shard x context."""
        place = self.place(rank)
        return place["shard"] * self.sizes["context"] + place["context"]


def layers_of_stages(config: ModelConfig, settings: ParallelSettings) -> list[range]:
    """The layers of each stage of the pipeline.

    Embedding and head count as a layer each, so that end stages have fewer: with 126 layers on 128 stages the first has
    only the embedding and the last only the head. A remainder goes to the stages in the middle.

    Source: The Llama 3 Herd of Models, section 3.3.2.
    """
    stages = settings.num_stages
    counts = list(settings.layers) or _even(config.num_hidden_layers, stages)
    ends = list(itertools.accumulate(counts))
    return [range(end - count, end) for end, count in zip(ends, counts)]


def _even(num_layers: int, stages: int) -> list[int]:
    if stages == 1:
        return [num_layers]
    share, extra = divmod(num_layers + 2, stages)
    first = (stages - extra) // 2
    units = [share + (first <= index < first + extra) for index in range(stages)]
    units[0] -= 1
    units[-1] -= 1
    return units


def part_config(config: ModelConfig, tensor: int) -> ModelConfig:
    """The configuration of one tensor-parallel part: fewer heads, a narrower MLP, a part of the vocabulary."""
    return replace(
        config,
        vocab_size=config.vocab_size // tensor,
        num_attention_heads=config.num_attention_heads // tensor,
        num_key_value_heads=config.num_key_value_heads // tensor,
        intermediate_size=config.intermediate_size // tensor,
    )


def check(config: ModelConfig, settings: ParallelSettings, world: int, row_tokens: int | None = None) -> RankLayout:
    """The layout, after checking that the model can be split like that; rows have `row_tokens` tokens.

    Raises:
        ConfigError: it cannot; all problems are listed.
    """
    faults = list(_faults(config, settings, row_tokens))
    try:
        layout = RankLayout.of(settings, world)
    except ConfigError as fault:
        faults.insert(0, str(fault).removeprefix("parallel: "))
    if faults:
        raise ConfigError("parallel: " + "\n  ".join(faults))
    return layout


def _faults(config: ModelConfig, settings: ParallelSettings, row_tokens: int | None) -> Iterator[str]:
    if settings.context > 1 and isinstance(config.rope_scaling, DynamicScaling | LongScaling):
        kind = config.rope_scaling.kind
        yield f"context={settings.context}: {kind} RoPE scaling depends on a text's length, which no process knows"
    tensor, context = settings.tensor, settings.context
    for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size", "vocab_size"):
        if getattr(config, name) % tensor:
            yield f"tensor {tensor} does not divide the model's {name} ({getattr(config, name)})"
    if tensor > 1 and (config.attention_bias or config.mlp_bias):
        yield f"tensor {tensor}: biases (attention_bias, mlp_bias) are not supported"
    if config.architecture != CAUSAL_LM and settings.of_one_copy > settings.shard:
        yield f"a {config.architecture} can only be sharded and copied, not split by tensor, context or pipeline"
    pieces = 2 * context * tensor if context > 1 else tensor
    if row_tokens is not None and row_tokens % pieces:
        yield f"rows of {row_tokens} tokens cannot be split into {pieces} equal parts (2 x context x tensor)"
    if settings.pipeline > 1 and config.tie_word_embeddings:
        yield "a pipeline needs a separate output projection: set tie_word_embeddings to false"
    stages, layers = settings.num_stages, config.num_hidden_layers
    if settings.layers and sum(settings.layers) != layers:
        yield f"layers {settings.layers} sum to {sum(settings.layers)}, but the model has {layers}"
    elif not settings.layers and stages > layers + 2:
        yield f"{stages} stages are more than the model's {layers} layers, its embedding and its head"


__all__ = ["DIMENSIONS", "RankLayout", "check", "layers_of_stages", "part_config"]
