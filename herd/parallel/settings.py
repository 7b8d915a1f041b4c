"""How a model and its data are spread over processes. Importable without PyTorch."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

from herd.config import settings

DIMENSIONS = ("tensor", "context", "pipeline", "shard", "replicas")
"""The paper's order, innermost first: the inner ones need the fast links inside a machine."""


@settings
class ParallelSettings:
    """Spread the model over the processes of `torchrun`; all ones (and replicas 0) is plain training."""

    only_how: ClassVar[bool] = True  # a run may be continued with others

    replicas: int = 0
    """Copies of the model, each on other rows (HSDP's outer dimension); 0: as many as processes are left for."""
    shard: int = 1
    """Processes that share one copy's weights, gradients and optimizer state, each on other rows (FSDP2)."""
    tensor: int = 1
    """Processes that split each layer's matrices, the vocabulary and, between layers, the sequence (TP + SP)."""
    context: int = 1
    """Processes that split each row's tokens, in 2 x context balanced chunks (CP)."""
    pipeline: int = 1
    """Processes that split the layers (PP)."""
    interleave: int = 1
    """Stages that each process of the pipeline holds (V): more make the bubble smaller and the messages more."""
    contiguous: int = 0
    """Micro-batches a stage runs in a row (N): as many as `pipeline` is depth first, all breadth first; 0: pipeline."""
    layers: list[int] = field(default_factory=list)
    """Layers of each stage, first to last; shared out evenly, embedding and head counted as a layer, when empty."""
    reshard_after_forward: bool | None = None
    """Give gathered weights back between forward and backward, and sum gradients in shards after each micro-batch: less
    memory, more traffic; null: not in a pipeline."""
    order: list[str] = field(default_factory=lambda: list(DIMENSIONS))
    """The dimensions, innermost first: neighbours in rank are neighbours in the first one."""

    def __post_init__(self):
        sizes = ("shard", "tensor", "context", "pipeline", "interleave")
        if bad := [name for name in sizes if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(bad)} must be at least 1")
        if self.replicas < 0 or self.contiguous < 0:
            raise ValueError("replicas and contiguous must be 0 or more")
        if self.interleave > 1 and self.pipeline == 1:
            raise ValueError("interleave needs a pipeline of 2 or more")
        if sorted(self.order) != sorted(DIMENSIONS):
            raise ValueError(f"order must name each of {', '.join(DIMENSIONS)} once")
        if self.layers and (len(self.layers) != self.num_stages or min(self.layers) < 0):
            raise ValueError(f"layers must give {self.num_stages} numbers of 0 or more: one for each stage")

    @property
    def num_stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.pipeline * self.interleave

    @property
    def of_one_copy(self) -> int:
        """Processes that hold one copy of the model together."""
        return self.shard * self.tensor * self.context * self.pipeline

    @property
    def reshards(self) -> bool:
        """Whether gathered weights are given back between forward and backward."""
        return self.pipeline == 1 if self.reshard_after_forward is None else self.reshard_after_forward
