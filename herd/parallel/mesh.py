"""The process groups of a layout, made once and passed to everything that communicates."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from herd.parallel.layout import RankLayout


class Mesh:
    """This rank's index in each dimension of a layout, and its groups. All ranks must make it together.

    A dimension of size 1 has no group. `weights` is the mesh for `fully_shard`: weights are sharded over shard x
    context processes and copied over replicas (the outer dimension, if there are several).
    """

    def __init__(self, layout: RankLayout, device: torch.device | str = "cpu"):
        self.layout, self.device, self.rank = layout, torch.device(device), dist.get_rank()
        self.place = layout.place(self.rank)
        self.tensor, self.context, self.pipeline = (self._group(name) for name in ("tensor", "context", "pipeline"))
        self.weights = self._weights_mesh()

    def size(self, name: str) -> int:
        """Processes along a dimension."""
        return self.layout.sizes[name]

    def _group(self, name: str) -> dist.ProcessGroup | None:
        return _new_group(self.layout.group(self.rank, name)) if self.size(name) > 1 else None

    def _weights_mesh(self) -> DeviceMesh:
        shards = _new_group(sorted(self.layout.group(self.rank, "shard", "context")))
        if self.size("replicas") == 1:
            return DeviceMesh.from_group(shards, self.device.type, mesh_dim_names=("shard",))
        replicas = self.layout.group(self.rank, "replicas")
        ranks = [sorted(self.layout.group(rank, "shard", "context")) for rank in replicas]
        groups, names = [_new_group(replicas), shards], ("replicas", "shard")
        return DeviceMesh.from_group(groups, self.device.type, mesh=torch.tensor(ranks), mesh_dim_names=names)


def _new_group(ranks: list[int]) -> dist.ProcessGroup:
    return dist.new_group(ranks, use_local_synchronization=True)
