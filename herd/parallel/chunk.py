"""A rank's shard of a tensor, saved by DCP under the full tensor's name and offset, to be read on any mesh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor


class LocalShard(Tensor):
    """A view of a local tensor with its offset in the full tensor.

    It implements DCP's protocol for sharded tensors; every operation on it returns a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, local: Tensor, offset: Sequence[int], whole: Sequence[int]) -> LocalShard:
        return torch.Tensor._make_subclass(cls, local)

    def __init__(self, local: Tensor, offset: Sequence[int], whole: Sequence[int]):
        self.local, self.offset, self.whole = local, torch.Size(offset), torch.Size(whole)

    def size(self) -> torch.Size:  # type: ignore[override]
        """The shape of the full tensor; `shape` is this shard's."""
        return self.whole

    def __create_write_items__(self, name: str, _: Tensor) -> list[WriteItem]:
        data = TensorWriteData(self._place(), TensorProperties.create_from_tensor(self.local), self.whole)
        return [WriteItem(MetadataIndex(name, self.offset), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._place()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.local

    def _place(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(self.offset, self.local.shape)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor on this rank, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
