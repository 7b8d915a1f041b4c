"""How likely a model finds given continuations of a prompt; continuations of one prompt share its computation.

A prompt and its continuations are one row: every continuation stands behind the prompt, at the positions that follow
it, and sees the prompt and itself alone. So four choices cost one prompt. Rows go through the model in batches of
similar length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.model.llama import LlamaForCausalLM

BATCH_TOKENS = 2048
"""Tokens of a batch, padding included; a longer row is a batch of its own."""


class Likelihood(NamedTuple):
    """What a model makes of one continuation."""

    nats: float  # summed log-probability
    num_tokens: int
    is_greedy: bool  # each token is the likeliest


@dataclass(frozen=True)
class Row:
    """One prompt with its continuations, as token ids."""

    stem: list[int]  # what all have in common, at least one token
    branches: list[list[int]]  # what each adds
    skipped: list[int]  # tokens at the beginning of each branch that belong to the prompt and are not scored

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.stem) + sum(map(len, self.branches))


def row_of(prompt: Sequence[int], wholes: Sequence[Sequence[int]]) -> Row:
    """A row from the prompt's ids and those of each prompt with its continuation; at least its last id is scored.

    A tokenizer may join the end of a prompt with what follows: the stem is what all really share.
    """
    scored_from = [min(len(prompt), len(whole) - 1) for whole in wholes]
    shared = min(scored_from)
    while any(list(whole[:shared]) != list(wholes[0][:shared]) for whole in wholes):
        shared -= 1
    skipped = [begin - shared for begin in scored_from]
    return Row(list(wholes[0][:shared]), [list(whole[shared:]) for whole in wholes], skipped)


def tree_attention(q: Tensor, k: Tensor, v: Tensor, context: Tensor, cache: Any = None) -> Tensor:
    """Attention where `context` (B, T, T) says which place sees which; q (B, T, H, C), k and v (B, T, K, C)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=context[:, None], enable_gqa=True)
    return out.transpose(1, 2)


@torch.inference_mode()
def likelihoods(model: LlamaForCausalLM, rows: Sequence[Row]) -> list[list[Likelihood]]:
    """Each row's continuations under a model that was built with `tree_attention`, in the order given."""
    found: list[list[Likelihood]] = [[]] * len(rows)
    for places in _batches(rows):
        for place, one in zip(places, _of_batch(model, [rows[place] for place in places]), strict=True):
            found[place] = one
    return found


def _batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Places of rows that go through the model together, longest first."""
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: -rows[place].num_tokens):
        if batch and (len(batch) + 1) * rows[batch[0]].num_tokens > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _of_batch(model: LlamaForCausalLM, rows: Sequence[Row]) -> list[list[Likelihood]]:
    width = max(row.num_tokens for row in rows)
    device = next(model.parameters()).device
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row without a key
    asked: list[tuple[int, int, int]] = []  # (row, place whose prediction is wanted, the token)
    spans: list[list[int]] = []  # of each row, scored tokens of each branch
    for number, row in enumerate(rows):
        stem = len(row.stem)
        tokens[number, :stem] = torch.tensor(row.stem)
        positions[number, :stem] = torch.arange(stem)
        sees[number, :stem, :stem] = torch.ones(stem, stem, dtype=torch.bool).tril()
        begin = stem
        for branch, skipped in zip(row.branches, row.skipped, strict=True):
            end = begin + len(branch)
            tokens[number, begin:end] = torch.tensor(branch)
            positions[number, begin:end] = torch.arange(stem, stem + len(branch))
            sees[number, begin:end, :stem] = True
            sees[number, begin:end, begin:end] = torch.ones(len(branch), len(branch), dtype=torch.bool).tril()
            before = [stem - 1, *range(begin, end - 1)]  # the place that predicts each token of the branch
            asked += [(number, *pair) for pair in zip(before[skipped:], branch[skipped:], strict=True)]
            begin = end
        spans.append([len(branch) - skipped for branch, skipped in zip(row.branches, row.skipped, strict=True)])
    tokens, positions, sees = (part.to(device) for part in (tokens, positions, sees))
    hidden = model.model(model.model.embed(tokens), positions, sees)
    return _shared_out(model, hidden, asked, spans)


def _shared_out(
    model: LlamaForCausalLM, hidden: Tensor, asked: list[tuple[int, int, int]], spans: list[list[int]]
) -> list[list[Likelihood]]:
    row, place, token = (torch.tensor(column, device=hidden.device) for column in zip(*asked, strict=True))
    nats, greedy = [], []
    for part in range(0, len(asked), 256):  # a wide vocabulary times all places would not fit
        here = slice(part, part + 256)
        logits = model.lm_head.logits(hidden[row[here], place[here]]).float()
        nats += (logits.gather(1, token[here, None])[:, 0] - logits.logsumexp(1)).tolist()
        greedy += (logits.argmax(1) == token[here]).tolist()
    found, begin = [], 0
    for lengths in spans:
        ones = []
        for length in lengths:
            end = begin + length
            ones.append(Likelihood(sum(nats[begin:end]), length, all(greedy[begin:end])))
            begin = end
        found.append(ones)
    return found
