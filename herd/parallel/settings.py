"""How a model and its data are split over processes; does not import PyTorch."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

from herd.config import settings

DIMENSIONS = ("tensor", "context", "pipeline", "shard", "replicas")
"""The Llama 3 paper's order, innermost first: inner dimensions need the fast links inside a machine."""


@settings
class ParallelSettings:
    """Split the model over the processes of `torchrun`; all ones (and replicas 0) is plain training."""

    only_how: ClassVar[bool] = True  # a run may be continued with other values

    replicas: int = 0
    """Copies of the model, each on different rows (HSDP's outer dimension); 0: use all remaining processes."""
    shard: int = 1
    """Processes that shard one copy's weights, gradients and optimizer state, each on different rows (FSDP2)."""
    tensor: int = 1
    """Processes that split each layer's matrices, the vocabulary and, between layers, the sequence (TP + SP)."""
    context: int = 1
    """Processes that split each row's tokens, in 2 x context chunks to balance causal attention (CP)."""
    pipeline: int = 1
    """Processes that split the layers (PP)."""
    interleave: int = 1
    """Stages per process of the pipeline (V): more of them mean a smaller bubble and more messages."""
    contiguous: int = 0
    """Consecutive micro-batches of a stage (N): `pipeline` is depth-first, all are breadth-first; 0: `pipeline`."""
    layers: list[int] = field(default_factory=list)
    """Layers of each stage, first to last; empty: evenly, with embedding and head counted as a layer each."""
    reshard_after_forward: bool | None = None
    """Free gathered weights between forward and backward, and reduce gradients to shards after each micro-batch: less
    memory, more communication; null: yes, except in a pipeline."""
    order: list[str] = field(default_factory=lambda: list(DIMENSIONS))
    """The dimensions, innermost first: consecutive ranks differ in the first one."""

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
        """Stages of the whole pipeline, over all processes."""
        return self.pipeline * self.interleave

    @property
    def of_one_copy(self) -> int:
        """Processes per copy of the model."""
        return self.shard * self.tensor * self.context * self.pipeline

    @property
    def reshards(self) -> bool:
        """Whether gathered weights are freed between forward and backward."""
        return self.pipeline == 1 if self.reshard_after_forward is None else self.reshard_after_forward
