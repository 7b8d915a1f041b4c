"""The memory of keys and values, paged."""

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
"""Tokens a block. Small blocks share prefixes finely, large ones are gathered faster."""

_SHARE_OF_MEMORY = 0.25  # of what is available, unless told otherwise


class PagedCache:
    """Every layer's pool of blocks, reserved once; the system hands over the pages when they are first written."""

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
        """`dtype` int8 holds a bfloat16 scale beside each key and value. `num_spare` blocks lie behind the others."""
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
        """Its largest size in bytes."""
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
    """Bytes one block takes in all layers."""
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
    """How many blocks to reserve: what was asked for, else a quarter of the available memory.

    `num_spare` more are paid for that belong to nobody. `other_bytes` is what else a block takes: a draft model's keys
    and values. Never more than all sequences can fill at full context.

    Raises:
        CapacityError: there is not even room for one block and the spare ones.
    """
    budget = cache_bytes if cache_bytes is not None else int(_SHARE_OF_MEMORY * available_memory(device))
    each = block_bytes(config, block_size, dtype) + other_bytes
    most = max_sequences * -(-max_context // block_size)
    if budget < each * (1 + num_spare):
        spare = f" and {num_spare} is kept free for CUDA graphs (graphs=False: none)" if num_spare else ""
        raise CapacityError(
            f"The cache of keys and values may take {size(budget)}, but one block of {block_size} tokens takes "
            f"{size(each)}{spare}; give it more memory (cache_bytes, engine.cache_gb)."
        )
    return min(budget // each - num_spare, most)
