"""A checkpoint on disk in any format, under Hugging Face's names, read in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.places import Format
from herd.model.config import ModelConfig
from herd.model.llama import empty_model
from herd.model.rope import interleaved_to_halves
from herd.ops.blocks import Blocks

CHUNK_WEIGHTS = 16_000_000
"""Most weights of a chunk."""

_TURNED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
_SHOWN = 3  # how many tensor names an error lists


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: its metadata, and a function that reads its rows."""

    name: str
    """Its name in the file."""
    dtype: str
    """Its stored type: a PyTorch dtype (`bfloat16`) or a GGUF block type (`Q8_0`)."""
    shape: tuple[int, ...]
    num_bytes: int
    file: Path
    rows: Callable[[int, int], Tensor]
    """The rows from `begin` to `end` as floats, in the file's own order of channels."""
    blocks: Callable[[], Blocks | None] | None = None
    """The matrix in its quantized blocks, if the engine can compute with them."""


@dataclass(frozen=True)
class StoredWeights:
    """A checkpoint's configuration and tensors, which are read on demand."""

    path: Path
    format: Format
    config: ModelConfig
    tensors: dict[str, StoredTensor]
    """By Hugging Face's names."""
    adjacent: bool = False
    """Whether RoPE rotates adjacent channels (Meta, llama.cpp), not channels half a head apart."""

    @property
    def dtype(self) -> torch.dtype:
        """The model's default dtype: the embedding's, or bfloat16 if that is quantized."""
        stored = getattr(torch, self.tensors["model.embed_tokens.weight"].dtype, torch.bfloat16)
        return stored if stored.itemsize > 1 else torch.bfloat16

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A whole tensor in Hugging Face's order of channels; mapped from its file if it needs no conversion."""
        tensor = self.tensors[name]
        if not self._is_turned(name) and tensor.dtype == str(dtype or self.dtype).removeprefix("torch."):
            return tensor.rows(0, tensor.shape[0])
        whole = torch.empty(tensor.shape, dtype=dtype or self.dtype)
        begin = 0
        for chunk in self.chunks(name):
            whole[begin : begin + len(chunk)] = chunk
            begin += len(chunk)
        return whole

    def read_blocks(self, name: str) -> Blocks | None:
        """A matrix in its quantized blocks, in Hugging Face's order of channels; None if it has none."""
        if (make := self.tensors[name].blocks) is None or (blocks := make()) is None or not self._is_turned(name):
            return None if make is None else blocks
        places = torch.arange(self.tensors[name].shape[0])
        return blocks.rows(interleaved_to_halves(places, len(places) // self.config.head_dim))

    def chunks(self, name: str) -> Iterator[Tensor]:
        """A tensor's rows in chunks (of whole heads), in Hugging Face's order of channels."""
        tensor, head_dim = self.tensors[name], self.config.head_dim
        for begin, end in spans(tensor.shape, head_dim):
            rows = tensor.rows(begin, end)
            yield interleaved_to_halves(rows, len(rows) // head_dim) if self._is_turned(name) else rows

    def _is_turned(self, name: str) -> bool:
        return self.adjacent and is_rotary(name)


def is_rotary(name: str) -> bool:
    """Whether a tensor's rows are channels that RoPE rotates."""
    return name.endswith(_TURNED)


def spans(shape: tuple[int, ...], head_dim: int) -> Iterator[tuple[int, int]]:
    """Row ranges of a tensor's chunks: whole heads, of at most CHUNK_WEIGHTS or one head."""
    columns = shape[1] if len(shape) > 1 else 1
    step = max(1, CHUNK_WEIGHTS // max(columns, 1) // head_dim) * head_dim
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a configuration's tensors, without a tied head."""
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def check_fit(weights: StoredWeights, declared_in: str) -> StoredWeights:
    """Check every name and shape against the configuration; returns the weights.

    Raises:
        CheckpointError: a tensor is missing, left over, or has another shape.
    """
    expected = expected_shapes(weights.config)
    missing, extra = sorted(expected.keys() - weights.tensors.keys()), sorted(weights.tensors.keys() - expected.keys())
    if missing:
        raise CheckpointError(f"{weights.path} lacks {some_tensors(missing)}, which its {declared_in} asks for.")
    if extra:
        stored = [weights.tensors[name].name for name in extra]
        raise CheckpointError(f"{weights.path} holds {some_tensors(stored)}, for which its {declared_in} has no place.")
    for name, shape in expected.items():
        tensor = weights.tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} has the shape {list(tensor.shape)}, "
                f"but {declared_in} asks for {list(shape)}."
            )
    return weights


def check_finite(place: Path, weights: dict[str, Tensor]) -> None:
    """Check every norm and three rows of every matrix, where a diverged run or a damaged file shows.

    Raises:
        CheckpointError: a value is not finite.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        rows = tensor[[0, len(tensor) // 2, -1]] if tensor.ndim > 1 else tensor
        if not torch.isfinite(rows.float()).all():
            raise CheckpointError(
                f"{place}: tensor {name} holds values that are not finite (NaN or infinity): the run that made it "
                "diverged, or the file is damaged. `herd inspect PATH weights=true` lists all such tensors."
            )


def some_tensors(names: list[str]) -> str:
    """The first few of a list of tensors, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {', '.join(names[:_SHOWN])}{more}"
