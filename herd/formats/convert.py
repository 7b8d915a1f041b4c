"""Converting a checkpoint to another format or precision, in chunks, so that models larger than the memory work.

Disk and memory are announced first; the copy's logits are compared with the original's before it is renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from herd.errors import CapacityError, CheckpointError, DataError
from herd.formats import gguf
from herd.formats.checkpoint import MAX_SHARD_BYTES, Checkpoint, carried, open_checkpoint, write_configs
from herd.formats.compare import Difference, difference
from herd.formats.folder import holds_weights
from herd.formats.gguf_model import plan_gguf, write_gguf
from herd.formats.gguf_vocabulary import gguf_fields
from herd.formats.meta import (
    config_of_params,
    feed_forward_width,
    params_of,
    plan_shards,
    read_params,
    write_meta,
)
from herd.formats.places import CONFIG, PARAMS, SUFFIX, Format
from herd.formats.safetensors import plan_files, write_index, write_safetensors
from herd.formats.stored import CHUNK_WEIGHTS, StoredWeights, expected_shapes
from herd.log import progress, say, size
from herd.model.config import GENERATION, ModelConfig
from herd.run import atomic_folder
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer

PRECISIONS = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K_M",
    "q4_k_m": "Q4_K_M",
    "q4_0": "Q4_0",
}
"""The precisions that can be written, with GGUF's names; those that begin with q exist only in GGUF."""

_SPARE_DISK = 50_000_000
_RESIDENT_BYTES = 500_000_000  # Python, PyTorch and the libraries they load
_PIECE_COPIES = 6  # of a chunk in float32: read, permuted, rounded, written, and kept by the allocator
_LOSSLESS, _ROUNDED = 1e-4, 0.1  # largest difference allowed, as a share of the logits' spread


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write, computed before the first weight is read."""

    format: Format
    precision: str
    files: dict[str, int]
    """Bytes of each large file."""
    config: ModelConfig

    @property
    def num_bytes(self) -> int:
        """Disk space needed."""
        return sum(self.files.values())

    @property
    def memory_bytes(self) -> int:
        """Most anonymous memory; mapped files come on top, but the system can drop them at any time."""
        widest = max(self.config.intermediate_size, self.config.hidden_size, self.config.vocab_size // 8)
        return _RESIDENT_BYTES + _PIECE_COPIES * 4 * max(CHUNK_WEIGHTS, self.config.head_dim * widest)


@dataclass(frozen=True)
class Converted:
    """A finished conversion."""

    path: Path
    plan: ConversionPlan
    difference: Difference | None
    """None if it was not checked."""


def convert(
    source: Path | str | Checkpoint,
    target: Path | str,
    *,
    format: Format | None = None,
    precision: str | None = None,
    shards: int = 1,
    check: bool = True,
) -> Converted:
    """Write a checkpoint in another format, atomically.

    `format` None means GGUF for a target named `.gguf`, and Hugging Face otherwise; `precision` None keeps the stored
    one (bfloat16 for quantized weights); `shards` is the number of Meta's tensor-parallel files.

    Raises:
        CheckpointError: the source is damaged, the target exists, the format does not support the model, or the copy's
            logits differ from the original's.
        CapacityError: the disk is too small.
    """
    checkpoint, target = open_checkpoint(source), Path(target)
    weights = checkpoint.weights
    plan = plan_of(weights.config, target, format, precision or _stored_precision(weights), shards)
    check_target(target, plan)
    say(f"  {checkpoint.place} -> {target}: {describe(plan)}")
    with _named(target), _aside(target, plan.format) as aside:
        with progress("write", total=plan.num_bytes, unit="bytes") as bar:
            for written in _write(checkpoint, aside, plan, shards, target.stem):
                bar.advance(written)
        result = _compare(weights, aside, plan) if check else None
    return Converted(target, plan, result)


# ---- before ----------------------------------------------------------------------------------------------------------


def plan_of(
    config: ModelConfig, target: Path, format: Format | None, precision: str, shards: int = 1
) -> ConversionPlan:
    """What would be written for a model of this configuration.

    Raises:
        CheckpointError: the format does not support it.
    """
    format = format or ("gguf" if target.suffix == SUFFIX else "huggingface")
    if precision not in PRECISIONS:
        raise CheckpointError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    if shards < 1 or (shards > 1 and format != "meta"):
        raise CheckpointError(f"shards={shards}: expected 1, or more with Meta's format.")
    shapes = expected_shapes(config)
    if format == "gguf":
        table = plan_gguf(config, shapes, PRECISIONS[precision])
        return ConversionPlan(
            format, precision, {target.name: sum(gguf.num_bytes(*entry) for entry in table.values())}, config
        )
    dtype = _dtype(precision, format)
    if format == "meta":
        params_of(config)
        plans = plan_shards(config, shapes, shards).values()
        part = sum(torch.Size(plan.shape).numel() for plan in plans if plan.same_as is None) * dtype.itemsize
        return ConversionPlan(format, precision, {f"consolidated.{i:02d}.pth": part for i in range(shards)}, config)
    files = plan_files(shapes, dtype, MAX_SHARD_BYTES)
    sizes = {file: sum(torch.Size(shapes[n]).numel() for n in names) * dtype.itemsize for file, names in files.items()}
    return ConversionPlan(format, precision, sizes, config)


def plan_on_paper(
    source: Path | str,
    target: Path | str,
    *,
    format: Format | None = None,
    precision: str | None = None,
    shards: int = 1,
) -> ConversionPlan:
    """What `convert` would write; the source needs only a configuration, not weights.

    Raises:
        CheckpointError: there is no configuration, or the format does not support the model.
    """
    source, target = Path(source), Path(target)
    if not (source / CONFIG).is_file() and (source / PARAMS).is_file():
        return plan_of(_config_on_paper(source / PARAMS), target, format, precision or "bfloat16", shards)
    if (source / CONFIG).is_file() and not holds_weights(source):
        return plan_of(ModelConfig.from_folder(source), target, format, precision or "bfloat16", shards)
    weights = open_checkpoint(source).weights
    return plan_of(weights.config, target, format, precision or _stored_precision(weights), shards)


def _config_on_paper(file: Path) -> ModelConfig:
    """A configuration from params.json only, with the feed-forward width by Meta's rule."""
    params = read_params(file)
    width = feed_forward_width(params["dim"], params.get("ffn_dim_multiplier") or 1.0, params.get("multiple_of", 256))
    rows = params.get("vocab_size", -1)
    if rows < 1:
        raise CheckpointError(f"{file} does not give vocab_size; the weights are needed to plan.")
    return config_of_params(params, rows, width, tied=False, token_ids={})


def check_target(target: Path, plan: ConversionPlan) -> None:
    """Check the target before anything is written.

    Raises:
        CheckpointError: the target exists.
        CapacityError: the disk is too small.
    """
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} already exists; choose another name, or delete it.")
    place = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < plan.num_bytes + _SPARE_DISK:
        raise CapacityError(
            f"{target}: needs {size(plan.num_bytes + _SPARE_DISK)} of disk, {size(free)} is free; free some space or "
            "choose another place."
        )


def describe(plan: ConversionPlan) -> str:
    """A plan in one line."""
    files = f"{len(plan.files)} files" if len(plan.files) > 1 else "one file"
    return (
        f"{plan.format}, {plan.precision}, {files}, {size(plan.num_bytes)} of disk, "
        f"at most {size(plan.memory_bytes)} of memory"
    )


def _stored_precision(weights: StoredWeights) -> str:
    return str(weights.dtype).removeprefix("torch.") if weights.dtype != torch.float64 else "float32"


def _dtype(precision: str, format: Format) -> torch.dtype:
    if precision not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f"{precision} exists only in GGUF; choose bfloat16, float16 or float32 for {format}.")
    return getattr(torch, precision)


# ---- write -----------------------------------------------------------------------------------------------------------


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Add the target's name to errors without one, such as a full disk."""
    try:
        yield
    except OSError as fault:
        fault.filename = fault.filename or str(target)
        raise


@contextmanager
def _aside(target: Path, format: Format) -> Iterator[Path]:
    """A temporary folder or file, renamed to the target if the block succeeds and deleted otherwise."""
    if format != "gguf":
        with atomic_folder(target) as folder:
            yield folder
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield file
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(file, target)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _write(checkpoint: Checkpoint, aside: Path, plan: ConversionPlan, shards: int, name: str) -> Iterator[int]:
    weights, tokenizer = checkpoint.weights, _tokenizer_of(checkpoint)
    if plan.format == "gguf":
        fields = gguf_fields(tokenizer, weights.config.vocab_size) if tokenizer else {"tokenizer.ggml.model": "none"}
        fields |= {key: json.dumps(value) for key, value in carried(weights.config).items()}
        yield from write_gguf(weights, aside, PRECISIONS[plan.precision], fields, name)
        return
    dtype = _dtype(plan.precision, plan.format)
    if plan.format == "meta":
        yield from write_meta(weights, aside, dtype, shards)
    else:
        yield from _write_huggingface(weights, aside, dtype)
    if tokenizer:
        save_tokenizer(tokenizer, aside, with_ranks=plan.format == "meta")
    if plan.format == "meta" and (generation := weights.config.generation_config()) is not None:
        (aside / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _write_huggingface(weights: StoredWeights, aside: Path, dtype: torch.dtype) -> Iterator[int]:
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    files = plan_files(shapes, dtype, MAX_SHARD_BYTES)
    num_bytes = 0
    for file, names in files.items():
        pieces = {name: _rounded(weights, name, dtype) for name in names}
        for written in write_safetensors(aside / file, {name: shapes[name] for name in names}, dtype, pieces):
            num_bytes += written
            yield written
    if len(files) > 1:
        write_index(aside, files, num_bytes)
    write_configs(replace(weights.config, quantization_config=None), aside, dtype)


def _rounded(weights: StoredWeights, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
    for rows in weights.chunks(name):
        yield rows.to(dtype).contiguous()


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    try:
        return checkpoint.tokenizer
    except DataError as fault:
        say(f"  the copy gets no tokenizer: {fault}")
        return None


# ---- check -----------------------------------------------------------------------------------------------------------


def _compare(weights: StoredWeights, aside: Path, plan: ConversionPlan) -> Difference:
    """Compare the copy's logits with the original's.

    Raises:
        CheckpointError: they differ by more than rounding explains.
    """
    copy = open_checkpoint(aside).weights
    layers = 2 * (weights.config.num_hidden_layers + 1)
    with progress("compare", total=layers, unit="layers") as bar:
        result = difference(weights, copy, lambda _: bar.advance(1))
    say(f"  {result}")
    allowed = _allowed(weights, plan)
    if not math.isfinite(result.largest) or result.largest > allowed * max(result.spread, 1.0):
        raise CheckpointError(
            f"{weights.path}: the copy's predictions differ from the original's: {result}. Nothing was written. "
            "`herd inspect PATH weights=true` shows weights that are not finite; check=false writes the copy anyway."
        )
    return result


def _allowed(weights: StoredWeights, plan: ConversionPlan) -> float:
    """Largest difference allowed, as a share of the logits' spread: by whether the copy is lossless, rounded to 16 bits
    or quantized (any)."""
    if plan.precision.startswith("q"):
        return float("inf")
    kinds = {tensor.dtype for tensor in weights.tensors.values()}
    return _LOSSLESS if plan.precision == "float32" or kinds == {plan.precision} else _ROUNDED
