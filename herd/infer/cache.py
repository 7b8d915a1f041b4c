"""The paged KV cache."""

from __future__ import annotations

import math

import numpy as np
import torch

from herd.errors import CapacityError
from herd.log import size
from herd.model.config import ModelConfig
from herd.ops.paged_attention import LayerCache
from herd.ops.probe import available_memory

BLOCK_SIZE = 16
"""Tokens per block. Small blocks share more of a prefix, large ones are gathered faster."""

_SHARE_OF_MEMORY = 0.25  # of the available memory, by default


class PagedCache:
    """Every layer's pool of blocks, reserved once; the system gives it memory as blocks are first written."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        *,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        num_spare: int = 0,
    ) -> None:
        """With `dtype` int8, each key and value has a bfloat16 scale. `num_spare` blocks come after the others."""
        self.num_blocks, self.block_size, self.device = num_blocks, block_size, device
        shape = (config.num_hidden_layers, 2, num_blocks + num_spare, block_size, config.num_key_value_heads)
        self.tensors = [_zeros((*shape, config.head_dim), dtype, device)]
        if dtype == torch.int8:
            self.tensors.append(_zeros(shape, torch.bfloat16, device))
        self.layers = [
            LayerCache(*(tensor[layer, part] for tensor in self.tensors for part in (0, 1)))
            for layer in range(config.num_hidden_layers)
        ]

    @property
    def nbytes(self) -> int:
        """The cache's size in bytes, once all blocks have been written."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def copy(self, source: int, target: int) -> None:
        """Copy one block's keys and values in all layers."""
        for tensor in self.tensors:
            tensor[:, :, target] = tensor[:, :, source]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that take no memory on the host until they are written: `torch.zeros` would touch every page now."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes in all layers together."""
    heads = config.num_hidden_layers * 2 * config.num_key_value_heads
    scale_bytes = torch.bfloat16.itemsize if dtype == torch.int8 else 0
    return heads * block_size * (config.head_dim * dtype.itemsize + scale_bytes)


def num_blocks_for(
    config: ModelConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    max_sequences: int,
    max_context: int,
    cache_bytes: int | None,
    num_spare: int = 0,
    other_bytes: int = 0,
) -> int:
    """How many blocks to reserve: as many as fit `cache_bytes`, else a quarter of the available memory.

    `num_spare` further blocks are included in the budget, and per block `other_bytes` for a draft model's cache. Never
    more than all sequences can fill at full context.

    Raises:
        CapacityError: one block and the spare ones do not fit.
    """
    budget = cache_bytes if cache_bytes is not None else int(_SHARE_OF_MEMORY * available_memory(device))
    each = block_bytes(config, block_size, dtype) + other_bytes
    most = max_sequences * -(-max_context // block_size)
    if budget < each * (1 + num_spare):
        spare = f" and {num_spare} is kept free for CUDA graphs (graphs=False: none)" if num_spare else ""
        raise CapacityError(
            f"The KV cache may take {size(budget)}, but one block of {block_size} tokens takes "
            f"{size(each)}{spare}; give it more memory (cache_bytes, engine.cache_gb)."
        )
    return min(budget // each - num_spare, most)
