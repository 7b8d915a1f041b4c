"""Sampling tokens: temperature, top-k, top-p and min-p, for all rows of a batch at once.

Only the likeliest tokens of each row are sorted. A row's draw depends only on its own logits, settings and seed, never
on other rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from herd.types import TokenLogprob

_FIRST_CANDIDATES = 64  # enough for nearly every row of a trained model
_MORE = 16  # factor for rows that need more candidates
_COLDEST, _HOTTEST = 1e-6, 1e6  # beyond these, draws would be the same, but overflow

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


class SamplingRows(NamedTuple):
    """The sampling settings of N rows, as tensors, on the host or on the logits' device."""

    temperature: Tensor  # (N,) float32, 0 is greedy
    top_k: Tensor  # (N,) int64, 0 keeps all
    top_p: Tensor  # (N,) float32
    min_p: Tensor  # (N,) float32

    def beside(self, uniforms: Tensor, device: torch.device) -> tuple[SamplingRows, Tensor]:
        """The settings and the random numbers (N,) on a device, in one transfer."""
        if self.temperature.device == device:
            return self, uniforms
        columns = torch.stack([column.float() for column in (*self, uniforms)])  # a top_k is exact up to 2^24
        temperature, top_k, top_p, min_p, there = columns.pin_memory().to(device, non_blocking=True)
        return SamplingRows(temperature, top_k.long(), top_p, min_p), there

    def select(self, rows: Tensor) -> SamplingRows:
        """The settings of some rows."""
        return SamplingRows(*(column[rows] for column in self))


def sample(logits: Tensor, settings: SamplingRows, uniforms: Tensor) -> Tensor:
    """One token for each row: logits (N, V), uniforms (N,) in [0, 1) -> (N,) int64.

    Settings apply in the order of `transformers`: temperature, top-k, top-p (of what top-k left), min-p. Settings and
    uniforms should be on the host, which then knows without a synchronization which rows are sampled.
    """
    settings = settings._replace(top_k=settings.top_k.clamp_max(logits.shape[-1]))
    drawn = (settings.temperature > 0).nonzero().flatten()
    if drawn.numel() == logits.shape[0]:
        return _draw(logits, *settings.beside(uniforms, logits.device), _FIRST_CANDIDATES)
    tokens = logits.argmax(-1)
    if drawn.numel():
        chosen = settings.select(drawn).beside(uniforms[drawn], logits.device)
        places = drawn.to(logits.device, non_blocking=True)
        tokens[places] = _draw(logits[places], *chosen, _FIRST_CANDIDATES)
    return tokens


def _draw(logits: Tensor, settings: SamplingRows, uniforms: Tensor, num_candidates: int) -> Tensor:
    """Invert the cumulative distribution over the likeliest tokens; rows that need more candidates are drawn again."""
    num_candidates = min(num_candidates, logits.shape[-1])
    values, ids = logits.topk(num_candidates, dim=-1)
    probabilities = _probabilities(values, logits, settings.temperature)
    cumulative = probabilities.cumsum(-1)
    num_kept, kept_mass, cut = _keep(probabilities, cumulative, settings)
    place = (cumulative <= (uniforms * kept_mass)[:, None]).sum(-1)
    restricted = (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
    settled = cut | (~restricted & (place < num_candidates))
    tokens = ids.gather(-1, torch.minimum(place, num_kept - 1)[:, None]).squeeze(-1)
    if num_candidates == logits.shape[-1] or bool(settled.all()):
        return tokens
    again = (~settled).nonzero().flatten()
    tokens[again] = _draw(logits[again], settings.select(again), uniforms[again], num_candidates * _MORE)
    return tokens


def _probabilities(values: Tensor, logits: Tensor, temperature: Tensor) -> Tensor:
    """The candidates' probabilities (N, candidates), over the whole vocabulary, at each row's temperature."""
    largest, sharpness = values[:, :1], 1 / temperature.clamp(_COLDEST, _HOTTEST)[:, None]
    total = (logits - largest).mul_(sharpness).exp_().sum(-1, keepdim=True)
    return ((values - largest) * sharpness).exp_() / total


def _keep(probabilities: Tensor, cumulative: Tensor, settings: SamplingRows) -> tuple[Tensor, Tensor, Tensor]:
    """How many of the sorted candidates each row keeps, their mass, and whether the cut is within the candidates.

    Rows without a cut have the mass of the whole vocabulary: 1.
    """
    num_candidates = probabilities.shape[-1]
    rank = torch.arange(num_candidates, device=probabilities.device)
    top_k = torch.where(settings.top_k > 0, settings.top_k, num_candidates + 1)
    within_k = cumulative.gather(-1, (top_k - 1).clamp_max(num_candidates - 1)[:, None])
    mass_after_k = torch.where(top_k[:, None] <= num_candidates, within_k, 1.0)
    keep = rank < top_k[:, None]
    keep &= ((cumulative - probabilities) < settings.top_p[:, None] * mass_after_k) | (settings.top_p[:, None] >= 1)
    keep &= probabilities >= settings.min_p[:, None] * probabilities[:, :1]
    keep &= probabilities > 0  # rounding must not draw a forbidden token
    keep[:, 0] = True
    num_kept = keep.sum(-1)
    knows_mass_after_k = (settings.top_k == 0) | (settings.top_k <= num_candidates) | (settings.top_p >= 1)
    cut = ((num_kept < num_candidates) | (top_k == num_candidates)) & knows_mass_after_k
    mass = cumulative.gather(-1, (num_kept - 1)[:, None]).squeeze(-1)
    return num_kept, torch.where(cut, mass, 1.0), cut


def stream_seed(seed: int, index: int) -> int:
    """The 64-bit seed of answer `index` to a request with `seed`."""
    return (seed * 0xD1342543DE82EF95 + index * 0x2545F4914F6CDD1D + 1) & _MASK


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """A number in [0, 1) determined by each (seed, counter): (N,) uint64, (N,) uint64 -> (N,) float32.

    Source: SplitMix64 (Steele, Lea and Flood 2014), at position `counter` of the stream with this seed.
    """
    x = seeds + (counters + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def log_probabilities(logits: Tensor, tokens: list[int], num_top: list[int]) -> list[TokenLogprob]:
    """The model's log-probability (temperature 1) of each row's token, and of its `num_top` likeliest tokens."""
    normalized = logits.float().log_softmax(-1)
    chosen = normalized.gather(-1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(-1).tolist()
    values, ids = normalized.topk(min(max(num_top), logits.shape[-1]), dim=-1)
    rows = zip(tokens, chosen, ids.tolist(), values.tolist(), num_top, strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(top_ids[:count], top_values[:count], strict=True)))
        for token, logprob, top_ids, top_values, count in rows
    ]
