"""Quantize: weights of 8 or 4 bits, and what that changes in size, speed, bits per byte and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from herd.config import settings
from herd.data.shards import open_heldout
from herd.evals.quantized import qualities, speeds
from herd.formats.checkpoint import open_checkpoint
from herd.infer.quantize import MEMORY_BYTES, Quantized, quantize_folder, quantized_bytes
from herd.log import say, size
from herd.run import Run, open_run


@settings
class QuantizeSettings:
    """Make a smaller copy of a checkpoint and measure it beside the original."""

    checkpoint: Path
    """Checkpoint or run folder of a language model."""
    out: Path
    """Run folder to write; the copy is its `checkpoint/`."""
    scheme: Literal["int8", "int4", "fp8"] = "int8"
    """int8: a scale for each row. int4: a scale for 32 weights. fp8: the paper's, for GPUs; see herd/ops/fp8.py."""
    memory_bytes: int = MEMORY_BYTES
    """What quantizing may hold in memory beside the tensor it reads, in bytes."""
    shards: Path | None = None
    """Run folder of `herd pack`: bits per byte are measured on its held-out side; not measured without it."""
    max_bytes: int = 30_000
    """Held-out text per source, in bytes; whole documents, spread evenly."""
    context_tokens: int | None = None
    """Context for bits per byte, in tokens; default: the model's own, at most 1024."""

    def __post_init__(self):
        if self.memory_bytes < 1_000_000:
            raise ValueError("memory_bytes must be at least 1000000")
        if self.max_bytes < 1 or (self.context_tokens or 2) < 2:
            raise ValueError("max_bytes must be at least 1 and context_tokens at least 2")


def run(settings: QuantizeSettings) -> Path:
    """Write the quantized `checkpoint/`; the figures compare it with the original."""
    inputs = {"checkpoint": settings.checkpoint, "shards": settings.shards}
    with open_run(settings.out, stage="quantize", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        source = open_checkpoint(settings.checkpoint)
        heldout = open_heldout(settings.shards) if settings.shards else {}
        run.need(disk_bytes=quantized_bytes(source, settings.scheme))
        change = quantize_folder(source, run.path / "checkpoint", settings.scheme, settings.memory_bytes)
        target = open_checkpoint(run.path / "checkpoint")
        figures = _sizes(change) | speeds(source, target)
        most, context = settings.max_bytes, settings.context_tokens
        figures |= qualities(source, target, heldout, max_bytes=most, context_tokens=context)
        _tell(run, figures)
        run.finish(figures)
    return run.path


def _sizes(change: Quantized) -> dict[str, float]:
    return {
        "weights_bytes_before": change.bytes_before,
        "weights_bytes_after": change.bytes_after,
        "size_ratio": round(change.bytes_after / change.bytes_before, 4),
        "quantized_layers": change.num_layers,
    }


def _tell(run: Run, figures: dict[str, float]) -> None:
    def change(name: str) -> str:
        return " -> ".join(str(figures.get(f"{name}_{when}", "?")) for when in ("before", "after"))

    before, after = figures["weights_bytes_before"], figures["weights_bytes_after"]
    say(f"  weights {size(before)} -> {size(after)}, decoding {change('decode_tokens_per_second')} tokens/s")
    if "kl_nats_per_token" in figures:
        say(
            f"  bits per byte {change('heldout_bits_per_byte')}, KL {figures['kl_nats_per_token']} nats a token, "
            f"{figures['same_likeliest_token']:.1%} the same likeliest token"
        )
    say(f"  {run.path / 'checkpoint'} opens in transformers and vLLM (with compressed-tensors)")
