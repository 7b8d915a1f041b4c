"""The tensors of a Hugging Face folder: safetensors, or PyTorch's `pytorch_model*.bin`, read without executing code.

They are in one file, in shards with an index, or in numbered shards without an index. If both kinds exist, safetensors
are used, as in `transformers`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.pth import read_pth
from herd.formats.safetensors import TensorInfo, read_header
from herd.log import say

_KINDS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_NO_WEIGHTS = ("adapter_", "consolidated")  # LoRA's, and Meta's copy of the same tensors


def holds_weights(folder: Path) -> bool:
    """Whether a folder has any weight files."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def tensors_in_folder(folder: Path) -> dict[str, TensorInfo]:
    """Name, dtype, shape and file of every tensor of a checkpoint folder, in one file or in shards.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the index disagrees with its shards.
    """
    for stem, suffix in _KINDS:
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.exists():
            return _by_index(index, suffix)
        if single.exists():
            return _tensors_of(single)
        if parts := _numbered(folder, suffix):
            return _joined(parts)
    lone = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(_NO_WEIGHTS)]
    if len(lone) == 1:
        say(f"  weights are read from {lone[0].name}, the only safetensors file in {folder}")
        return _tensors_of(lone[0])
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor model.safetensors.index.json, nor shards numbered "
        "-00001-of-0000N, nor pytorch_model.bin: no weights to load."
    )


def _tensors_of(file: Path) -> dict[str, TensorInfo]:
    if file.suffix != ".bin":
        return read_header(file)
    return {name: TensorInfo(tensor.dtype, tuple(tensor.shape), file) for name, tensor in _unpickled(file).items()}


def _by_index(index: Path, suffix: str) -> dict[str, TensorInfo]:
    folder = index.parent
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise CheckpointError(f"{index} is damaged: no readable `weight_map` ({fault}).") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(suffix):
            kind = "safetensors" if suffix == ".safetensors" else suffix
            raise CheckpointError(f"{index} names the file {shard!r}: only {kind} files beside it are read.")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard} is missing, though {index.name} names it.")
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        found |= _tensors_of(folder / shard)
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{folder / shard} lacks the tensor {name}, which {index.name} places there.")
    return {name: found[name] for name in weight_map}


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """The numbered shards of a folder without an index; an empty list if there are none.

    Raises:
        CheckpointError: one is missing, or there are two sets.
    """
    found = {file: match for file in sorted(folder.glob(f"*{suffix}")) if (match := _NUMBERED.fullmatch(file.name))}
    sets = {(match[1], int(match[3])) for match in found.values()}
    if len(sets) > 1:
        names = ", ".join(f"{stem}-*-of-{count:05d}" for stem, count in sorted(sets))
        raise CheckpointError(f"{folder} holds several sets of weights, and no index to choose one: {names}.")
    for stem, count in sets:
        for number in range(1, count + 1):
            file = folder / f"{stem}-{number:05d}-of-{count:05d}{suffix}"
            if file not in found:
                raise CheckpointError(f"{file} is missing; there are {len(found)} of {count} shards.")
    return list(found)


def _joined(parts: list[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        more = _tensors_of(part)
        if twice := sorted(tensors.keys() & more.keys()):
            raise CheckpointError(f"{part}: the tensor {twice[0]} is also in {tensors[twice[0]].file.name}.")
        tensors |= more
    return tensors


# ---- contents --------------------------------------------------------------------------------------------------------


def read_tensors(tensors: dict[str, TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its name, file by file, memory-mapped.

    Raises:
        CheckpointError: a file is damaged.
    """
    for file in sorted({info.file for info in tensors.values()}):
        for name in (name for name, info in tensors.items() if info.file == file):
            yield name, mapped(file, name)


def mapped(file: Path, name: str) -> Tensor:
    """One tensor of a file; the file is mapped once for all of its tensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    if file.suffix == ".bin":
        return _unpickled(file)[name]
    try:
        return _opened_at(file, file.stat().st_mtime_ns).get_tensor(name)
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{file} is damaged: {fault}.") from None


def close_files() -> None:
    """Close the files that were read; tensors keep their mappings, all other pages are released."""
    _opened_at.cache_clear()
    _unpickled_at.cache_clear()


@functools.lru_cache(maxsize=256)
def _opened_at(file: Path, changed: int):
    return safe_open(file, framework="pt")


def _unpickled(file: Path) -> dict[str, Tensor]:
    return _unpickled_at(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _unpickled_at(file: Path, changed: int) -> dict[str, Tensor]:
    return read_pth(file)
