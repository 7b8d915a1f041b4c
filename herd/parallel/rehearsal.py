"""Building one rank's part of a large run in a single process and without memory.

A fake process group replaces the others (its collectives return at once) and every tensor is on the meta device, so
that a layout of 16,384 processes can be tested, rank by rank, on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from herd.model.config import ModelConfig
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings


@contextmanager
def as_rank(rank: int, world: int) -> Iterator[None]:
    """Act as one of `world` processes in a single one. There must be no other process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend `fake`

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_rank(config: ModelConfig, settings: ParallelSettings, row_tokens: int | None = None) -> ParallelModel:
    """This rank's part of a model (inside `as_rank`), with its groups and sharded weights, all on `meta`.

    Raises:
        ConfigError: the model cannot be split like that.
    """
    layout = check(config, settings, dist.get_world_size(), row_tokens)
    return ParallelModel(config, settings, Mesh(layout, "cpu"), torch.bfloat16)
