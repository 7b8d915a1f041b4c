"""From logits to the tokens of many answers at once, each row with its own answer's settings, seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from herd.infer.request import Answer
from herd.infer.sampler import SamplingRows, log_probabilities, sample, uniforms
from herd.infer.upload import indices
from herd.types import TokenLogprob

Drawn = list[tuple[int, TokenLogprob | None]]


def draw(answers: Sequence[Answer], rows: Sequence[Sequence[int]], logits: Tensor) -> list[Drawn]:
    """The next tokens of each answer, from its rows of the logits (N, V): one, and more where its drafts are accepted.

    The row after a draft counts only if the token drawn before is that draft. So every token is drawn from the
    distribution it has without drafts and, since the random numbers are the answer's own, is even the same token.
    """
    answer_of = [answer for answer, own in zip(answers, rows, strict=True) for _ in own]
    place_of = [len(answer.tokens) + n for answer, own in zip(answers, rows, strict=True) for n in range(len(own))]
    flat = [row for own in rows for row in own]
    if flat != list(range(logits.shape[0])):
        logits = logits[indices(flat, logits.device)]
    tokens = sample_tokens(answer_of, place_of, _adjusted(answer_of, logits))
    logprobs = _logprobs(answer_of, logits, tokens)
    drawn: list[Drawn] = []
    begin = 0
    for answer, own in zip(answers, rows, strict=True):
        stop = begin + 1
        while stop < begin + len(own) and tokens[stop - 1] == answer.drafts[stop - 1 - begin]:
            stop += 1
        drawn.append([(tokens[row], logprobs.get(row)) for row in range(begin, stop)])
        begin += len(own)
    return drawn


def _adjusted(answers: Sequence[Answer], logits: Tensor) -> Tensor:
    """The logits after penalties, biases and grammars; the originals are kept for log-probabilities."""
    changed = [(row, answer.adjustment) for row, answer in enumerate(answers) if answer.adjustment is not None]
    if not changed:
        return logits
    logits = logits.clone()
    for row, adjustment in changed:
        adjustment.apply(logits[row])
    return logits


def sample_tokens(answers: Sequence[Answer], places: Sequence[int], logits: Tensor) -> list[int]:
    """One token for each row of logits (N, V), by its answer's settings and random number for that position."""
    params = [answer.params for answer in answers]
    if all(p.temperature == 0 for p in params):
        return logits.argmax(-1).tolist()
    settings = SamplingRows(
        temperature=torch.tensor([p.temperature for p in params], dtype=torch.float32),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=torch.tensor([p.top_p for p in params], dtype=torch.float32),
        min_p=torch.tensor([p.min_p for p in params], dtype=torch.float32),
    )
    seeds = np.array([answer.seed for answer in answers], dtype=np.uint64)
    counters = np.array(places, dtype=np.uint64)
    return sample(logits, settings, torch.from_numpy(uniforms(seeds, counters))).tolist()


def _logprobs(answers: Sequence[Answer], logits: Tensor, tokens: Sequence[int]) -> dict[int, TokenLogprob]:
    """The model's own log-probabilities, before any adjustment, by row, where requested or needed for ranking."""
    wanted = [row for row, a in enumerate(answers) if a.params.logprobs is not None or a.chooses]
    if not wanted:
        return {}
    num_top = [answers[row].params.logprobs or 0 for row in wanted]
    logprobs = log_probabilities(logits[wanted], [tokens[row] for row in wanted], num_top)
    return dict(zip(wanted, logprobs, strict=True))
