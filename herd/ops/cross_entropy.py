"""Cross entropy straight from hidden states and the output weight, in chunks: the logits never exist as a whole.

V can be 128,256, so that the logits of one 8,192-token row take 4 GB in float32; a chunk takes a few megabytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.types import IGNORE

CHUNK_TOKENS = 512


def cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum over all places whose label is not IGNORE of -log softmax(hidden @ weight.T)[label], a float32 scalar.

    hidden is (..., D), weight (V, D), labels (...). Gradients are computed together with the loss, chunk by chunk,
    and only multiplied in the backward pass.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    kept = (labels != IGNORE).nonzero().squeeze(1)
    return _CrossEntropySum.apply(hidden[kept], weight, labels[kept])


def reference_cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The twin of `cross_entropy_sum`: all logits at once, in float32."""
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def token_log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Natural log-probability of each id at its place: hidden (..., D), weight (V, D), ids (...) -> (...) float32."""
    flat = _TokenLogProbs.apply(hidden.reshape(-1, hidden.shape[-1]), weight, ids.reshape(-1))
    return flat.view(ids.shape)


def reference_token_log_probs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The twin of `token_log_probs`."""
    log_probs = F.linear(hidden, weight).float().log_softmax(-1)
    return log_probs.gather(-1, ids[..., None]).squeeze(-1)


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(labels), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits = F.linear(hidden[part], weight).float()
            log_norm = logits.logsumexp(-1, keepdim=True)
            target = labels[part, None]
            total += (log_norm - logits.gather(1, target)).sum()
            probs = logits.sub_(log_norm).exp_()
            probs.scatter_add_(1, target, torch.full_like(log_norm, -1.0))
            grad_logits = probs.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[part])
            grad_weight += grad_logits.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_output.to(grad_hidden.dtype), grad_weight * grad_output.to(grad_weight.dtype), None


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        log_norms, chosen = [], []
        for start in range(0, len(ids), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits = F.linear(hidden[part], weight).float()
            log_norms.append(logits.logsumexp(-1))
            chosen.append(logits.gather(1, ids[part, None]).squeeze(1))
        log_norm = torch.cat(log_norms) if log_norms else hidden.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, ids, log_norm)
        return torch.cat(chosen) - log_norm if chosen else log_norm.clone()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        hidden, weight, ids, log_norm = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(ids), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            scale = grad_output[part, None]
            probs = F.linear(hidden[part], weight).float().sub_(log_norm[part, None]).exp_()
            probs.mul_(-scale).scatter_add_(1, ids[part, None], scale)
            grad_logits = probs.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[part])
            grad_weight += grad_logits.T @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None
