"""Log-probabilities over a vocabulary split over processes, which exchange maxima and sums, never logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from herd.ops.cross_entropy import CHUNK_LOGITS, MIN_CHUNK_TOKENS


def split_log_probs(hidden: Tensor, weight: Tensor, ids: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Natural log-probability of each id: hidden (N, D), this process's rows of the weight (V / size, D), ids (N,).

    The result, (N,) float32, is the same on all. Backward gives each process its rows' gradient and part of hidden's.
    The reference is `herd.ops.cross_entropy.token_log_probs` on the whole weight.
    """
    return _SplitLogProbs.apply(hidden, weight, ids, group)


class _SplitLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, ids: Tensor, group: dist.ProcessGroup) -> Tensor:
        first = group.rank() * len(weight)
        log_norm = torch.empty(len(ids), dtype=torch.float32, device=hidden.device)
        at_label = torch.empty_like(log_norm)
        for part in _chunks(len(ids), weight):
            logits = torch.mm(hidden[part], weight.T).float()
            largest = logits.max(-1).values
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
            here, outside = _places(ids[part], first, len(weight))
            chosen = logits.gather(1, here[:, None]).squeeze(1).masked_fill(outside, 0.0)
            sums = torch.stack((logits.sub_(largest[:, None]).exp_().sum(-1), chosen))
            dist.all_reduce(sums, group=group)
            log_norm[part], at_label[part] = sums[0].log() + largest, sums[1]
        ctx.save_for_backward(hidden, weight, ids, log_norm)
        ctx.first = first
        return at_label - log_norm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        hidden, weight, ids, log_norm = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for part in _chunks(len(ids), weight):
            grad = torch.mm(hidden[part], weight.T).float().sub_(log_norm[part, None]).exp_()
            grad.mul_(-upstream[part, None])
            here, outside = _places(ids[part], ctx.first, len(weight))
            grad.scatter_add_(1, here[:, None], upstream[part].masked_fill(outside, 0.0)[:, None])
            grad = grad.to(hidden.dtype)
            grad_hidden[part] = torch.mm(grad, weight)
            grad_weight += torch.mm(grad.T, hidden[part])
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _places(ids: Tensor, first: int, rows: int) -> tuple[Tensor, Tensor]:
    """Each id's index among this process's rows (0 if it is not there), and whether it is outside of them."""
    here = ids - first
    outside = (here < 0) | (here >= rows)
    return here.masked_fill(outside, 0), outside


def _chunks(num_tokens: int, weight: Tensor) -> Iterator[slice]:
    budget = CHUNK_LOGITS.get(weight.device.type, CHUNK_LOGITS["cuda"])
    size = max(MIN_CHUNK_TOKENS, budget // len(weight))
    for begin in range(0, num_tokens, size):
        yield slice(begin, min(begin + size, num_tokens))
