"""Write a checkpoint in another format or precision: Hugging Face's, Meta's, llama.cpp's GGUF.

    herd convert Meta-Llama-3.1-8B-Instruct llama.gguf precision=q8_0
    herd convert llama.gguf a-folder
    herd convert a-folder for-meta format=meta shards=8

The copy is written piece by piece, so a model may be larger than memory. Before it gets its name, its logits for a few
tokens are compared with the original's; a copy that differs is not kept.
"""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from herd.config import settings
from herd.formats.convert import ConversionPlan, convert, describe, plan_on_paper
from herd.log import say, size
from herd.model.config import num_parameters


@settings
class ConvertSettings:
    """What to convert, and into what."""

    path: Path
    """Checkpoint in any format, or run folder."""
    out: Path
    """Folder or GGUF file to write; must not exist."""
    format: Literal["huggingface", "meta", "gguf"] | None = None
    """Format to write; default: GGUF if `out` ends in .gguf, else Hugging Face's."""
    precision: Literal["float32", "bfloat16", "float16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"] | None = None
    """Number type to write, q8_0 to q4_0 only in GGUF; default: as stored, bfloat16 for quantized weights."""
    shards: int = 1
    """Files of Meta's format, one for each tensor-parallel rank."""
    check: bool = True
    """Compare the logits of original and copy; reads both once more."""
    dry_run: bool = False
    """Only print what would be written; this needs only the source's configuration."""
    json: bool = False
    """Print the result as one JSON object."""


def run(settings: ConvertSettings) -> None:
    """Convert, and print what was written.

    Raises:
        CheckpointError: the source is damaged, the target exists, or the format cannot hold the model.
        CapacityError: the disk is too small.
    """
    choices: dict[str, Any] = {"format": settings.format, "precision": settings.precision, "shards": settings.shards}
    if settings.dry_run:
        plan = plan_on_paper(settings.path, settings.out, **choices)
        print(json_format.dumps(_as_values(plan), indent=1) if settings.json else _on_paper(settings, plan))
        return
    done = convert(settings.path, settings.out, check=settings.check, **choices)
    if settings.json:
        difference = done.difference and asdict(done.difference)
        print(json_format.dumps({"path": str(done.path), **_as_values(done.plan), "difference": difference}, indent=1))
        return
    checked = f"; {done.difference}" if done.difference else "; not checked"
    print(f"{done.path}: {size(done.plan.num_bytes)}, {done.plan.format}, {done.plan.precision}{checked}")


def _as_values(plan: ConversionPlan) -> dict:
    return {
        "format": plan.format,
        "precision": plan.precision,
        "parameters": num_parameters(plan.config),
        "bytes": plan.num_bytes,
        "memory_bytes": plan.memory_bytes,
        "files": plan.files,
    }


def _on_paper(settings: ConvertSettings, plan: ConversionPlan) -> str:
    say("  nothing is written (dry_run)")
    lines = [f"{settings.path}: {num_parameters(plan.config):,} parameters", f"{settings.out}: {describe(plan)}"]
    return "\n".join([*lines, *(f"  {name}  {size(num_bytes)}" for name, num_bytes in plan.files.items())])
