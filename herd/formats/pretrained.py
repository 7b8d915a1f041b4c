"""`herd.load`: a model and its tokenizer in one call."""

from __future__ import annotations

from pathlib import Path

import torch

from herd.formats.checkpoint import open_checkpoint
from herd.model.llama import Llama
from herd.tokenizer.tokenizer import Tokenizer


def load(path: Path | str, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Llama, Tokenizer]:
    """A checkpoint's model, in eval mode, and its tokenizer; `model(tokens) -> logits`.

        model, tokenizer = herd.load("runs/demo")
        logits = model(torch.tensor([tokenizer.encode("def main(", bos=True)]))

    Raises:
        CheckpointError: there is no checkpoint at `path`, or it is damaged.
    """
    checkpoint = open_checkpoint(path)
    return checkpoint.load(dtype=dtype, device=device), checkpoint.tokenizer
