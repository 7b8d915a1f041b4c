"""Building what one rank of a large run would hold, without the ranks and without memory.

A fake process group stands for the others (it answers at once, with nothing) and every tensor is on the meta device, so
that a layout of 16,384 processes can be tried, rank by rank, on a laptop before it is paid for.
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
    """Be one of `world` processes for a while, alone. No other process group may be there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend `fake`

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_rank(config: ModelConfig, settings: ParallelSettings, row_tokens: int | None = None) -> ParallelModel:
    """This rank's part of a model (inside `as_rank`), its groups made and its weights sharded, all on `meta`.

    Raises:
        ConfigError: the model cannot be spread like that.
    """
    layout = check(config, settings, dist.get_world_size(), row_tokens)
    return ParallelModel(config, settings, Mesh(layout, "cpu"), torch.bfloat16)
