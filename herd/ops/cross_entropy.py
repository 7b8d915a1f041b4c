"""Cross entropy from hidden states and the output weight, in chunks, so that logits never exist all at once.

V can be 128,256, so that the logits of a row of 8,192 tokens take 4 GB in float32; a chunk takes a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.kernels.native import counts, layer_kernels, pointers
from herd.types import IGNORE

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**28}
"""Logits of a chunk: 8 MB in bfloat16 on the CPU, to stay in its cache; elsewhere enough for efficient matmuls."""
MIN_CHUNK_TOKENS = 1024
"""With fewer, summing the weight's gradient would cost more than computing it; a quarter of it in float32, where the
matmul itself accumulates."""
_TINY = torch.finfo(torch.float32).tiny


def cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log softmax(hidden @ weight.T)[label] over all labels that are not IGNORE, a float32 scalar.

    hidden is (..., D), weight (V, D), labels (...). Gradients are computed together with the loss, chunk by chunk,
    and only scaled in the backward pass; the loss then has the precision of the hidden states' dtype. Without gradients
    everything is float32.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    kept = (labels != IGNORE).nonzero().squeeze(1)
    hidden, labels = hidden[kept], labels[kept]
    if not torch.is_grad_enabled():
        return -token_log_probs(hidden, weight, labels).sum()
    return _CrossEntropySum.apply(hidden, weight, labels)


def reference_cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The reference for `cross_entropy_sum`: all logits at once, in float32."""
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def token_log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Natural log-probability of each id at its position: hidden (..., D), weight (V, D), ids (...) -> (...) float32.

    Ids may also be (..., k), k for each position.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    log_probs: Tensor = _TokenLogProbs.apply(flat, weight, ids.reshape(len(flat), ids.numel() // max(len(flat), 1)))
    return log_probs.view(ids.shape)


def reference_token_log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The reference for `token_log_probs`."""
    log_probs = F.linear(hidden, weight).float().log_softmax(-1)
    several = ids.dim() == hidden.dim()
    return log_probs.gather(-1, ids) if several else log_probs.gather(-1, ids[..., None]).squeeze(-1)


class _CrossEntropySum(torch.autograd.Function):
    """Loss and gradients together: three matmuls (two for a frozen weight) and one softmax per chunk."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part, logits, spare in chunks(hidden, weight):
            torch.mm(hidden[part], weight.T, out=logits)
            loss, grad_logits = _loss_and_gradient(logits, labels[part], spare)
            total += loss
            torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _accumulate(grad_weight, grad_logits.T, hidden[part])
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return _times(grad_hidden, grad_total), _times(grad_weight, grad_total), None


def _times(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    if gradient is None or (factor.device.type == "cpu" and factor == 1):  # a trainer's loss is the last of its graph
        return gradient
    return gradient * factor.to(gradient.dtype)


def _accumulate(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """sums += left @ right, which may have a narrower dtype; PyTorch would convert all of it first."""
    if sums.dtype == right.dtype:
        torch.addmm(sums, left, right, out=sums)
        return
    part = torch.mm(left, right)
    if kernels := layer_kernels(part):
        kernels.accumulate(*counts(part.numel()), *pointers(part, sums), torch.get_num_threads())
    else:
        sums += part


def _loss_and_gradient(logits: Tensor, labels: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk and the gradient of its logits, in the memory of the logits or of `spare`."""
    if labels.dtype == torch.int64 and (kernels := layer_kernels(logits)):
        losses = torch.empty(len(labels), dtype=torch.float32)
        tensors = pointers(logits, labels, losses)
        if kernels.cross_entropy(*counts(*logits.shape), *tensors, torch.get_num_threads()):
            raise IndexError(f"a label is outside the vocabulary of {logits.shape[1]:,}")
        return losses.sum(), logits
    probs = torch.softmax(logits, -1, out=spare)
    at_label = torch.arange(len(probs), device=probs.device), labels
    chosen = probs[at_label]
    probs[at_label] = chosen - 1
    return -chosen.float().clamp_min(_TINY).log_().sum(), probs


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        log_probs = torch.empty(ids.shape, dtype=torch.float32, device=hidden.device)
        for part, logits, wide in chunks(hidden, weight, torch.float32):
            torch.mm(hidden[part], weight.T, out=logits)
            torch.log_softmax(logits, -1, dtype=torch.float32, out=wide)
            log_probs[part] = wide.gather(1, ids[part])
        ctx.save_for_backward(hidden, weight, ids)
        return log_probs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_probs: Tensor):
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part, logits, probs in chunks(hidden, weight):
            torch.softmax(torch.mm(hidden[part], weight.T, out=logits), -1, out=probs)
            upstream = grad_log_probs[part]  # (tokens, k)
            probs.mul_(-upstream.sum(1, keepdim=True).to(probs.dtype))
            probs.scatter_add_(1, ids[part], upstream.to(probs.dtype))
            torch.mm(probs, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _accumulate(grad_weight, probs.T, hidden[part])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def chunks(hidden: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Split the tokens so that a chunk has about CHUNK_LOGITS logits.

    Each comes with two buffers (tokens, V), the second in `dtype` if given. Their memory is reused, because page faults
    on new memory cost more than writing it.
    """
    num_tokens, vocabulary = len(hidden), len(weight)
    budget = CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"])
    least = MIN_CHUNK_TOKENS // 4 if hidden.dtype == torch.float32 else MIN_CHUNK_TOKENS
    size = min(num_tokens, max(least, budget // vocabulary))
    logits = torch.empty(size, vocabulary, dtype=hidden.dtype, device=hidden.device)
    second = torch.empty_like(logits, dtype=dtype)
    for first in range(0, num_tokens, size or 1):
        length = min(size, num_tokens - first)
        yield slice(first, first + length), logits[:length], second[:length]
