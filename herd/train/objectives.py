"""Objectives: functions from hidden states, a head and a batch to a `Loss`.

An objective gets hidden states, never logits or weights: the head computes logits in chunks, or split over processes.
It returns sums and counts, which the trainer divides once, so that micro-batches of unequal size are weighted right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.model.llama import Head
from herd.types import IGNORE, Batch, Loss

_CHUNK_TOKENS = 1024  # whose logits are in memory at a time in `likeliest`
_LEAST_REST = 1e-6  # of the probability; float32 does not resolve less


def next_token(hidden: Tensor, head: Head, batch: Batch, *, sources: Sequence[str] = ()) -> Loss:
    """Cross entropy of every labelled token: for pre-training, long context, annealing and SFT.

    With the names of the loader's `sources` (rows ordered by source, as `PackedLoader` makes them) the loss of each is
    a metric.
    """
    num_labels = (batch.labels != IGNORE).sum(1)
    if len(sources) < 2:
        return Loss(head.cross_entropy_sum(hidden, batch.labels), num_labels.sum(), {})
    rows = torch.bincount(batch.columns["source"], minlength=len(sources)).tolist()
    sums = [
        head.cross_entropy_sum(states, labels) if len(labels) else hidden.new_zeros((), dtype=torch.float32)
        for states, labels in zip(hidden.split(rows), batch.labels.split(rows))
    ]
    counts = [part.sum() for part in num_labels.split(rows)]
    metrics = {f"loss/{name}": (part.detach(), count) for name, part, count in zip(sources, sums, counts)}
    return Loss(torch.stack(sums).sum(), num_labels.sum(), metrics)


def reward_pairs(hidden: Tensor, head: nn.Linear, batch: Batch) -> Loss:
    """-log sigmoid(better score - worse score), summed over all comparisons of the batch; no margin.

    Columns `better` and `worse` (M, 2) give row and position of each response's last token; a pair with an edited
    response gives three comparisons (edited > chosen, edited > rejected, chosen > rejected).

    Source: The Llama 3 Herd of Models, section 4.1.2.
    """
    margin = reward_margins(hidden, head, batch)
    count = torch.tensor(len(margin), device=hidden.device)
    metrics = {
        "accuracy": ((margin > 0).sum().detach(), count),
        "margin": (margin.sum().detach(), count),
    }
    return Loss(-F.logsigmoid(margin).sum(), count, metrics)


def dpo(
    hidden: Tensor,
    head: Head,
    batch: Batch,
    *,
    beta: float = 0.1,
    nll: float = 0.2,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
) -> Loss:
    """Direct preference optimization with formatting tokens masked and an NLL term on the chosen response.

    Per pair: -log sigmoid(beta * ((policy - reference)(chosen) - (policy - reference)(rejected))) + nll * NLL(chosen).
    Log-probabilities are summed over the tokens where column `counted` (B, T) is true, which excludes headers and
    terminators; the NLL is the mean over all labelled tokens of the response, terminator included, so that the model
    does not unlearn to stop. Column `response` (B, T) says which response a label belongs to (2i chosen, 2i + 1
    rejected, -1 none); `reference` (2P,) holds the reference model's sums.

    With `ipo` the first term is (difference of the gains per token - 1 / (2 beta))^2, which has a finite optimum where
    DPO's has none. The gain is taken per token, as its authors intended and TRL does.

    Source: The Llama 3 Herd of Models, section 4.1.4; NLL per token as in Pang et al. 2024; IPO: Azar et al. 2023.
    """
    log_probs, response, counted = response_log_probs(hidden, head, batch)
    reference = batch.columns["reference"]
    sums = _sum_by(response, log_probs * counted, len(reference))
    gain = (sums - reference).view(-1, 2)  # (P, 2): chosen, rejected
    margin = beta * (gain[:, 0] - gain[:, 1])
    num_tokens = _sum_by(response, torch.ones_like(log_probs), len(reference)).clamp(min=1)
    chosen_nll = -(_sum_by(response, log_probs, len(reference)) / num_tokens).view(-1, 2)[:, 0]

    count = torch.tensor(len(margin), device=hidden.device)
    figures = {
        "accuracy": (margin > 0).sum(),
        "margin": margin.sum(),
        "chosen_reward": beta * gain[:, 0].sum(),
        "rejected_reward": beta * gain[:, 1].sum(),
        "nll": chosen_nll.sum(),
    }
    metrics = {name: (figure.detach(), count) for name, figure in figures.items()}
    preference = -F.logsigmoid(margin)
    if loss == "ipo":
        tokens = _sum_by(response, counted.to(log_probs.dtype), len(reference)).clamp(min=1).view(-1, 2)
        mean = gain / tokens
        preference = (mean[:, 0] - mean[:, 1] - 1 / (2 * beta)) ** 2
    return Loss((nll * chosen_nll + preference).sum(), count, metrics)


def distill(hidden: Tensor, head: Head, batch: Batch) -> Loss:
    """KL divergence from the teacher's next-token distribution to the model's, summed over all labelled tokens.

    Columns `teacher_ids` and `teacher_log_probs` (B, T, k) hold the teacher's top k tokens, the likeliest first; all
    other tokens together are one more outcome. `agreement` counts how often, among these k, the model's top token is
    the teacher's.

    Source: Hinton et al. 2015, with the tail as one outcome instead of a temperature.
    """
    learned = batch.labels != IGNORE
    ids, teacher = batch.columns["teacher_ids"][learned].long(), batch.columns["teacher_log_probs"][learned].float()
    student = head.log_probs(hidden[learned], ids)  # (N, k)
    teachers, models = (torch.cat((of, _rest(of)[:, None]), 1) for of in (teacher, student))  # (N, k + 1)
    divergence = (teachers.exp() * (teachers - models)).sum()
    count = learned.sum()
    return Loss(divergence, count, {"agreement": ((student.argmax(1) == 0).sum().detach(), count)})


def policy_gradient(
    hidden: Tensor,
    head: Head,
    batch: Batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl: float = 0.0,
    figures: Sequence[str] = (),
) -> Loss:
    """The clipped policy gradient of sampled tokens, weighted by their answers' advantages, for GRPO and RLOO.

    Columns (B, T): `advantage`, `sampled` (the engine's log-probability of the token when it was sampled, so that
    differences between engine and trainer are corrected by the ratio), `weight`, `counted`, `fresh`, and with `kl`
    above 0 `reference`. The KL term is the estimator exp(d) - d - 1 of d = reference - policy. `max_engine_gap` is the
    largest |engine's - trainer's log-probability| where the weights are those that sampled (`fresh`). Column `figures`
    (1, 2k) holds sums and counts that become metrics under the names `figures`.

    Source: Schulman et al. 2017 (clipping); Yu et al. 2025 (separate clip bounds); Schulman 2020 (KL estimator).
    """
    learned = batch.labels != IGNORE
    log_probs = head.log_probs(hidden[learned], batch.labels[learned])
    columns = {name: batch.columns[name][learned] for name in ("advantage", "sampled", "weight", "fresh")}
    advantage, weight = columns["advantage"], columns["weight"]
    ratio = (log_probs - columns["sampled"]).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    number = learned.sum()
    gap = ((log_probs.detach() - columns["sampled"]).abs() * columns["fresh"]).max() if len(log_probs) else loss.sum()
    metrics = {
        "max_engine_gap": (gap.detach(), columns["fresh"].any().long()),
        "clipped": ((clipped * advantage < ratio * advantage).sum().detach(), number),
        "entropy": (-log_probs.sum().detach(), number),  # estimated from the sampled tokens
    }
    if kl:
        difference = batch.columns["reference"][learned] - log_probs
        divergence = difference.exp() - difference - 1
        loss = loss + kl * divergence
        metrics["kl"] = (divergence.sum().detach(), number)
    if figures:
        values = batch.columns["figures"][0]
        metrics |= {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(figures)}
    return Loss((loss * weight).sum(), batch.columns["counted"].sum(), metrics)


def label_log_probs(hidden: Tensor, head: Head, batch: Batch) -> Tensor:
    """The log-probability of every label, 0 where there is no label: (B, T) float32."""
    learned = batch.labels != IGNORE
    log_probs = torch.zeros(batch.labels.shape, device=hidden.device)
    log_probs[learned] = head.log_probs(hidden[learned], batch.labels[learned])
    return log_probs


def likeliest(hidden: Tensor, head: Head, batch: Batch, *, k: int) -> tuple[Tensor, Tensor]:
    """The top k tokens at every label, the likeliest first, and their log-probabilities: (N, k)."""
    parts = []
    for states in hidden[batch.labels != IGNORE].split(_CHUNK_TOKENS):
        log_probs, ids = head.logits(states).float().log_softmax(-1).topk(k)
        parts.append((ids, log_probs))
    ids, log_probs = (torch.cat(part) for part in zip(*parts))
    return ids, log_probs


def reward_margins(hidden: Tensor, head: nn.Linear, batch: Batch) -> Tensor:
    """Better score minus worse score of every comparison of a batch: (M,) float32."""
    better, worse = (_scores(hidden, head, batch.columns[name]) for name in ("better", "worse"))
    return better - worse


def response_log_probs(hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """For each labelled token of a response: its log-probability, which response, and whether it counts for DPO."""
    learned = batch.columns["response"] >= 0
    log_probs = head.log_probs(hidden[learned], batch.labels[learned])
    return log_probs, batch.columns["response"][learned], batch.columns["counted"][learned]


def response_sums(hidden: Tensor, head: Head, batch: Batch) -> Tensor:
    """The summed log-probability of every response of a batch, over the tokens that count for DPO: (2P,)."""
    log_probs, response, counted = response_log_probs(hidden, head, batch)
    return _sum_by(response, log_probs * counted, len(batch.columns["reference"]))


def _scores(hidden: Tensor, head: nn.Linear, places: Tensor) -> Tensor:
    scores: Tensor = head(hidden[places[:, 0], places[:, 1]])
    return scores.float().squeeze(-1)


def _rest(log_probs: Tensor) -> Tensor:
    """The log-probability of all other tokens together: (N, k) -> (N,)."""
    return torch.log1p(-log_probs.exp().sum(1).clamp(max=1 - _LEAST_REST))


def _sum_by(group: Tensor, values: Tensor, num_groups: int) -> Tensor:
    return values.new_zeros(num_groups).index_add(0, group, values)
