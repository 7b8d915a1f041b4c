"""Which format a checkpoint is in, and opening it: Hugging Face's folder, Meta's folder, llama.cpp's file."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from herd.errors import CheckpointError
from herd.formats.gguf_model import SUFFIX, open_gguf
from herd.formats.meta import is_meta_checkpoint, open_meta
from herd.formats.safetensors import TensorInfo, tensors_in_folder
from herd.formats.stored import StoredTensor, StoredWeights, check_fit
from herd.gguf import is_gguf
from herd.model.config import ModelConfig

_FP8_METHODS = ("fbgemm_fp8", "fp8")  # Meta's own 405B; what `herd quantize` writes computes as it is
_SCALE = "_scale"


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint that a path means: a GGUF file, a folder, its `checkpoint/`, or what its run.json points to.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected a checkpoint folder, a run folder or a GGUF file.")
    if path.is_file():
        return _of_file(path)
    candidates = [path, path / "checkpoint", *_pointed_to(path)]
    for candidate in candidates:
        if (candidate / "config.json").is_file() or is_meta_checkpoint(candidate):
            return candidate
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{path} holds {len(files)} GGUF files; name one of them, such as {files[0]}.")
    raise CheckpointError(
        f"{path} holds no checkpoint: expected config.json in it, in {path / 'checkpoint'}, a finished run whose "
        f"run.json names one, Meta's params.json and consolidated.*.pth, or one {SUFFIX} file."
    )


def _of_file(path: Path) -> Path:
    if path.suffix == SUFFIX or is_gguf(path):
        return path
    if path.name in ("config.json", "params.json") or path.suffix in (".safetensors", ".pth"):
        return find_checkpoint(path.parent)
    raise CheckpointError(f"{path} is no checkpoint: expected a folder or a GGUF file.")


def _pointed_to(path: Path) -> list[Path]:
    try:
        target = json.loads((path / "run.json").read_text(encoding="utf-8")).get("checkpoint")
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [path / target] if isinstance(target, str) else []


def is_huggingface(place: Path) -> bool:
    """Whether what `find_checkpoint` found is a Hugging Face folder."""
    return (place / "config.json").is_file()


def open_weights(path: Path | str) -> StoredWeights:
    """Open a checkpoint in any format without reading its weights.

    Raises:
        CheckpointError: a file is missing, damaged, or its tensors do not fit its configuration.
        ConfigError: it describes something other than a Llama.
    """
    place = find_checkpoint(path)
    if place.is_file():
        return open_gguf(place)
    return open_huggingface(place) if is_huggingface(place) else open_meta(place)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def open_huggingface(folder: Path) -> StoredWeights:
    """A folder of safetensors; 8-bit floats are multiplied by their scales as they are read.

    Raises:
        CheckpointError: a file is missing or damaged, the tensors do not fit config.json, or the weights are integers.
        ConfigError: config.json describes something other than a Llama.
    """
    config = ModelConfig.from_folder(folder)
    tensors = without_leftovers(tensors_in_folder(folder), config)
    if holds_packed(tensors):
        raise CheckpointError(f"{folder} is quantized already; give the original weights.")
    stored = {
        name: _stored(name, info, _scale_of(name, tensors))
        for name, info in tensors.items()
        if not name.endswith((_SCALE, "input_scale_ub"))
    }
    return check_fit(StoredWeights(folder, "huggingface", config, stored), "config.json")


def without_leftovers(tensors: dict[str, TensorInfo], config: ModelConfig) -> dict[str, TensorInfo]:
    """Drop what old exporters wrote beside the weights: rotary tables, and the second name of a tied embedding."""
    return {
        name: info
        for name, info in tensors.items()
        if not name.endswith("rotary_emb.inv_freq") and not (name == "lm_head.weight" and config.tie_word_embeddings)
    }


def holds_packed(tensors: dict[str, TensorInfo]) -> bool:
    """Whether the weights are whole numbers with scales (`herd quantize`)."""
    return not all(info.dtype.is_floating_point for info in tensors.values())


def holds_fp8(config: ModelConfig, tensors: dict[str, TensorInfo]) -> bool:
    """Whether the weights are 8-bit floats with scales, which are read as bfloat16."""
    method = (config.quantization_config or {}).get("quant_method")
    return method in (None, *_FP8_METHODS) and any(
        info.dtype.is_floating_point and info.dtype.itemsize == 1 for info in tensors.values()
    )


def _scale_of(name: str, tensors: dict[str, TensorInfo]) -> tuple[str, TensorInfo] | None:
    if tensors[name].dtype.itemsize > 1:
        return None
    key = name + _SCALE
    if key not in tensors:
        return None
    rows, info = tensors[name].shape[0], tensors[key]
    if info.shape not in ((), (1,), (rows,), (rows, 1)):
        raise CheckpointError(
            f"{info.file}: tensor {key} has the shape {list(info.shape)}; read are scales of a whole tensor or of each "
            "row."
        )
    return key, info


def _stored(name: str, info: TensorInfo, scale: tuple[str, TensorInfo] | None) -> StoredTensor:
    def rows(begin: int, end: int) -> Tensor:
        taken = _mapped(info.file, name)[begin:end]
        if scale is None:
            return taken if info.dtype.itemsize > 1 else taken.bfloat16()
        factors = _mapped(scale[1].file, scale[0]).float().reshape(-1, 1)
        return (taken.float() * (factors[begin:end] if len(factors) > 1 else factors)).bfloat16()

    num_bytes = torch.Size(info.shape).numel() * info.dtype.itemsize
    return StoredTensor(name, str(info.dtype).removeprefix("torch."), info.shape, num_bytes, info.file, rows)


def _mapped(file: Path, name: str) -> Tensor:
    try:
        return _opened(file).get_tensor(name)
    except SafetensorError as fault:
        raise CheckpointError(f"{file} is damaged: {fault}.") from None


@functools.lru_cache(maxsize=256)
def _opened_at(file: Path, changed: int):
    return safe_open(file, framework="pt")


def _opened(file: Path):
    """The file, mapped once for all its tensors."""
    return _opened_at(file, file.stat().st_mtime_ns)
