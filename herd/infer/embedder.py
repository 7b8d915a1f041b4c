"""Texts to vectors: hidden states of the last layer, pooled over the tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.infer.build import with_attention
from herd.infer.engine import Engine
from herd.ops.attention import packed_attention

Pooling = Literal["mean", "last"]
"""The mean of all tokens' hidden states, or the last token's, which has attended to all others."""


class Embedder:
    """Embeds texts with an engine's model. The weights are shared; the KV cache is not used."""

    def __init__(self, engine: Engine) -> None:
        self._model = with_attention(engine.model, packed_attention)
        self.size = engine.model.config.hidden_size

    @torch.inference_mode()
    def embed(self, tokens: list[int], pooling: Pooling = "mean") -> Tensor:
        """One vector of length 1: T token ids -> (D,) float32 on the CPU."""
        model = self._model.model
        ids = torch.tensor([tokens], device=model.embed_tokens.weight.device)
        positions = torch.arange(len(tokens), device=ids.device)[None]
        hidden = model(model.embed(ids), positions)[0].float()  # (T, D)
        return F.normalize(hidden.mean(0) if pooling == "mean" else hidden[-1], dim=0).cpu()
