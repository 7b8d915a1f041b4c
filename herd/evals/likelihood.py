"""How likely a model finds given continuations; what they have in common is computed once.

Continuations are sorted and laid into trees: every token stands once behind the tokens before it, at its own position,
and sees only its own beginning. So four choices cost one prompt, and questions behind the same examples cost the
examples once. Trees go through the model in batches of similar size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.model.llama import LlamaForCausalLM

BATCH_TOKENS = 1024
"""Tokens of a batch, padding included; a longer tree is a batch of its own."""

FILLED = 0.85
"""A tree shorter than this share of a batch's longest begins the next, once the batch is worth its while."""

TOKEN_PAIRS = 1024
"""A token costs about as much as so many pairs of tokens in attention: what a tree shares is weighed against the pairs
of its branches, which see nothing of each other and are computed all the same."""

Choice = tuple[str, str]
"""What stands before a continuation and is not scored, and the continuation."""


class Likelihood(NamedTuple):
    """What a model makes of one continuation."""

    nats: float  # summed log-probability
    num_tokens: int
    is_greedy: bool  # each token is the likeliest


@dataclass(frozen=True)
class Continuation:
    """Token ids, scored from one place on; the first token is given."""

    ids: Sequence[int]
    scored_from: int

    def __post_init__(self) -> None:
        assert 1 <= self.scored_from < len(self.ids)


def continuation(prompt: Sequence[int], whole: Sequence[int]) -> Continuation:
    """From the ids of a prompt and those of it with what follows; at least the last id is scored."""
    return Continuation(whole, max(1, min(len(prompt), len(whole) - 1)))


@dataclass
class Tree:
    """Continuations that begin alike, each shared token once."""

    members: list[int] = field(default_factory=list)  # places of the continuations
    paths: list[list[int]] = field(default_factory=list)  # of each: the tree's places of its tokens
    segments: list[tuple[int, int, list[int]]] = field(default_factory=list)  # new tokens (from, to), what they follow
    tokens: list[int] = field(default_factory=list)

    def gains(self, length: int, shared: int) -> bool:
        """Whether a continuation that shares so many tokens costs less here than in a tree of its own."""
        new = length - shared
        return new * (len(self.tokens) + new - length) <= TOKEN_PAIRS * shared

    def add(self, member: int, ids: Sequence[int], shared: int) -> None:
        """Lay a continuation whose first `shared` tokens are those of the one added last."""
        begin = len(self.tokens)
        before = self.paths[-1][:shared] if self.paths else []
        self.tokens += ids[shared:]
        self.segments.append((begin, len(self.tokens), before))
        self.paths.append([*before, *range(begin, len(self.tokens))])
        self.members.append(member)


def trees_of(continuations: Sequence[Continuation]) -> list[Tree]:
    """Trees of continuations that have a quarter of their tokens in common; nobody needs what follows their last."""
    trees: list[Tree] = []
    last: Sequence[int] = ()
    for member in sorted(range(len(continuations)), key=lambda place: list(continuations[place].ids)):
        ids = continuations[member].ids[:-1]
        shared = _shared(last, ids)
        if not trees or 4 * shared < len(ids) or not trees[-1].gains(len(ids), shared):
            trees.append(Tree())
            shared = 0
        trees[-1].add(member, ids, shared)
        last = ids
    return trees


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second)):
        if one != other:
            return place
    return min(len(first), len(second))


@dataclass(frozen=True)
class Sight:
    """Which place of each tree sees which."""

    stem: int  # the first so many places of every tree stand in one line: each sees all before it
    others: Tensor  # (B, 1, T - stem, T), added to the scores of the other places: 0 where one sees the other


def tree_attention(q: Tensor, k: Tensor, v: Tensor, context: Sight, cache: Any = None) -> Tensor:
    """Attention within trees; q (B, T, H, C), k and v (B, T, K, C).

    The stem is plain causal attention: half the work.
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    stem = context.stem
    parts = [
        F.scaled_dot_product_attention(q[:, :, :stem], k[:, :, :stem], v[:, :, :stem], is_causal=True, enable_gqa=True)
    ]
    if stem < q.shape[2]:
        mask = context.others.to(q.dtype)
        parts.append(F.scaled_dot_product_attention(q[:, :, stem:], k, v, attn_mask=mask, enable_gqa=True))
    return torch.cat(parts, 2).transpose(1, 2)


@torch.inference_mode()
def likelihoods(model: LlamaForCausalLM, continuations: Sequence[Continuation]) -> list[Likelihood]:
    """Of each continuation under a model that was built with `tree_attention`, in the order given."""
    found: dict[int, Likelihood] = {}
    for batch in _batches(trees_of(continuations)):
        found |= _of_batch(model, batch, continuations)
    return [found[place] for place in range(len(continuations))]


def _batches(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Trees that go through the model together, longest first."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=lambda one: -len(one.tokens)):
        width = len(batch[0].tokens) if batch else 0
        padded = FILLED * width > len(tree.tokens) and len(batch) * width >= BATCH_TOKENS // 4
        if batch and ((len(batch) + 1) * width > BATCH_TOKENS or padded):
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _of_batch(
    model: LlamaForCausalLM, trees: Sequence[Tree], continuations: Sequence[Continuation]
) -> dict[int, Likelihood]:
    width = max(len(tree.tokens) for tree in trees)
    device = next(model.parameters()).device
    tokens = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: no row without a key
    places: dict[tuple[int, int], int] = {}  # (tree, place in it) whose prediction is wanted -> its number
    asked: list[tuple[int, int]] = []  # (number of the prediction, the token)
    spans: list[tuple[int, int]] = []  # (continuation, its scored tokens)
    for number, tree in enumerate(trees):
        tokens[number, : len(tree.tokens)] = torch.tensor(tree.tokens)
        for begin, end, before in tree.segments:
            positions[number, begin:end] = torch.arange(len(before), len(before) + end - begin)
            sees[number, begin:end, torch.tensor(before, dtype=torch.int64)] = True
            sees[number, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        for member, path in zip(tree.members, tree.paths, strict=True):
            one = continuations[member]
            for place in range(one.scored_from, len(one.ids)):
                wanted = places.setdefault((number, path[place - 1]), len(places))
                asked.append((wanted, one.ids[place]))
            spans.append((member, len(one.ids) - one.scored_from))
    stem = min(tree.segments[0][1] for tree in trees)
    others = torch.zeros(len(trees), 1, width - stem, width).masked_fill_(~sees[:, None, stem:], -math.inf)
    tokens, positions = tokens.to(device), positions.to(device)
    hidden = model.model(model.model.embed(tokens), positions, Sight(stem, others.to(device)))
    tree_of, place_of = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
    nats, greedy = _of_tokens(model, hidden[tree_of, place_of], asked)
    found, begin = {}, 0
    for member, length in spans:
        end = begin + length
        found[member] = Likelihood(sum(nats[begin:end]), length, all(greedy[begin:end]))
        begin = end
    return found


def _of_tokens(
    model: LlamaForCausalLM, hidden: Tensor, asked: Sequence[tuple[int, int]]
) -> tuple[list[float], list[bool]]:
    """Log-probability of each token asked for, and whether it is the likeliest; hidden (N, D)."""
    number, token = (torch.tensor(column, device=hidden.device) for column in zip(*asked, strict=True))
    nats = torch.empty(len(asked), device=hidden.device)
    greedy = torch.empty(len(asked), dtype=torch.bool, device=hidden.device)
    for begin in range(0, len(hidden), 256):  # a wide vocabulary times all places would not fit
        logits = model.lm_head.logits(hidden[begin : begin + 256]).float()
        here = (number >= begin) & (number < begin + 256)
        row = number[here] - begin
        nats[here] = logits[row, token[here]] - logits.logsumexp(1)[row]
        greedy[here] = logits.argmax(1)[row] == token[here]
    return nats.tolist(), greedy.tolist()
