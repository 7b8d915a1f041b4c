"""What a cache of int8 keys and values changes about a model's predictions, by place in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from herd.errors import DataError
from herd.evals.likelihood import Sight, tree_attention
from herd.model.llama import LlamaForCausalLM
from herd.ops.paged_attention import quantize_heads

_AT_ONCE = 256  # places whose logits are held together


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, context: Sight, cache: Any = None) -> Tensor:
    """`tree_attention` over keys and values as an int8 cache gives them back."""
    return tree_attention(q, _rounded(k), _rounded(v), context)


def _rounded(x: Tensor) -> Tensor:
    numbers, scale = quantize_heads(x)
    return (numbers.float() * scale.float()[..., None]).to(x.dtype)


@torch.inference_mode()
def divergence(model: LlamaForCausalLM, rounded: LlamaForCausalLM, ids: Sequence[int]) -> dict[str, float]:
    """KL divergence a token in nats (`kl_nats`, and of each eighth of the text `kl 1/8`) and how often the likeliest
    token stays the same, of one model built with `tree_attention` and with `rounded_attention`.

    Raises:
        DataError: the text has fewer than 8 tokens.
    """
    if len(ids) < 8:
        raise DataError(f"a text of {len(ids)} tokens is too short; the cache is compared over at least 8")
    device = next(model.parameters()).device
    tokens = torch.tensor([ids], device=device)
    positions = torch.arange(len(ids), device=device)[None]
    sight = Sight(len(ids), torch.zeros(1, 1, 0, len(ids), device=device))
    first, second = (one.model(one.model.embed(tokens), positions, sight)[0] for one in (model, rounded))
    kl, same = torch.zeros(len(ids)), torch.zeros(len(ids))
    for begin in range(0, len(ids), _AT_ONCE):
        here = slice(begin, begin + _AT_ONCE)
        p, q = (model.lm_head.logits(hidden[here]).float().log_softmax(-1) for hidden in (first, second))
        kl[here] = (p.exp() * (p - q)).sum(-1).cpu()
        same[here] = (p.argmax(-1) == q.argmax(-1)).float().cpu()
    eighths = {f"kl {n}/8": float(part.mean()) for n, part in enumerate(torch.tensor_split(kl, 8), 1)}
    return {"kl_nats": float(kl.mean()), "same_token": float(same.mean())} | eighths
