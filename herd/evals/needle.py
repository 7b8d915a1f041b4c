"""Needle in a haystack, cut to what a small base model can do: copy a planted value from far back in its context.

Somewhere in real text stands the line `KEY_742 = 'word'`; the text ends with `KEY_742 = '`. The word is one token, so a
single reading of the prompt gives two figures per cell of the grid (depth of the needle x length of the prompt):

- `copied`: the word is the likeliest next token of all (greedy decoding would write it);
- `chosen`: it is the likeliest of 16 words that could as well have been planted (chance 1/16).

Neither is the paper's needle test, where a chat model answers a question in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herd.errors import DataError
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_CHOICES = 16
_MIN_LENGTH = 64
_PLAIN_WORD = re.compile(rb"[a-z]{4,8}")


@dataclass(frozen=True)
class Needle:
    """One prompt of the grid."""

    tokens: np.ndarray  # (T,) begin-of-text, haystack with the needle in it, query
    length: int  # of the cell, in tokens
    depth: float  # 0 at the beginning, 1 just before the query
    answer: int  # token id of the planted word
    choices: np.ndarray  # (NUM_CHOICES,) token ids, the answer among them


@dataclass(frozen=True)
class NeedleGrid:
    """Shares of prompts answered, by depth (rows) and length (columns)."""

    depths: tuple[float, ...]
    lengths: tuple[int, ...]
    copied: np.ndarray  # (depths, lengths)
    chosen: np.ndarray  # (depths, lengths)
    trials: int  # prompts per cell

    def to_json(self) -> dict:
        """For needle.json and the report."""
        return {
            "depths": list(self.depths),
            "lengths": list(self.lengths),
            "copied": self.copied.round(4).tolist(),
            "chosen": self.chosen.round(4).tolist(),
            "trials": self.trials,
            "choices": NUM_CHOICES,
        }


NextLogits = Callable[[np.ndarray], np.ndarray]
"""(B, T) token ids -> (B, V) scores of the token that follows."""


def needle_grid(
    next_logits: NextLogits,
    tokenizer: Tokenizer,
    haystack: Sequence[int] | np.ndarray,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    trials: int = 8,
    seed: int = 0,
    batch_tokens: int = 8192,
) -> NeedleGrid:
    """Plant and look for needles at every depth and length (in tokens, the query included).

    `haystack` is text the model has not been trained on; each trial reads another stretch of it.
    """
    words = plain_words(tokenizer)
    copied = np.zeros((len(depths), len(lengths)))
    chosen = np.zeros_like(copied)
    for column, length in enumerate(lengths):
        needles = [
            plant(tokenizer, words, haystack, length=length, depth=depth, trial=trial, seed=seed)
            for depth in depths
            for trial in range(trials)
        ]
        rows_at_once = max(1, batch_tokens // length)
        for start in range(0, len(needles), rows_at_once):
            batch = needles[start : start + rows_at_once]
            scores = next_logits(np.stack([needle.tokens for needle in batch]))
            for place, (needle, row) in enumerate(zip(batch, scores, strict=True), start):
                copied[place // trials, column] += row.argmax() == needle.answer
                chosen[place // trials, column] += needle.choices[row[needle.choices].argmax()] == needle.answer
    return NeedleGrid(tuple(depths), tuple(lengths), copied / trials, chosen / trials, trials)


def plant(
    tokenizer: Tokenizer,
    words: np.ndarray,
    haystack: Sequence[int] | np.ndarray,
    *,
    length: int,
    depth: float,
    trial: int,
    seed: int = 0,
) -> Needle:
    """One prompt of exactly `length` tokens with one of `words` (token ids) planted; a pure function of its arguments.

    Raises:
        DataError: the haystack, or the length, is too short.
    """
    generator = np.random.default_rng([seed, length, trial])  # depths share text and word: only the place differs
    choices = generator.choice(words, NUM_CHOICES, replace=False)
    key = f"KEY_{generator.integers(100, 1000)}"
    opening = tokenizer.encode(f"\n{key} = '")
    needle = [*opening, int(choices[0]), *tokenizer.encode("'\n")]
    room = length - 1 - len(needle) - len(opening)
    if room < 1:
        raise DataError(f"a needle prompt of {length} tokens has no room for text; use at least {_MIN_LENGTH}")
    if len(haystack) < room:
        raise DataError(f"a needle prompt of {length} tokens needs {room} tokens of held-out text, got {len(haystack)}")
    start = int(generator.integers(0, len(haystack) - room + 1))
    text = [int(token) for token in haystack[start : start + room]]
    cut = round(depth * room)
    tokens = np.array([tokenizer.bos_id, *text[:cut], *needle, *text[cut:], *opening], dtype=np.int64)
    return Needle(tokens, length, depth, int(choices[0]), choices)


def model_next_logits(model: LlamaForCausalLM) -> NextLogits:
    """A model as the function that `needle_grid` asks; only the last place's logits are made."""

    @torch.inference_mode()
    def next_logits(rows: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(rows).to(next(model.parameters()).device)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        hidden = model.model(model.model.embed(tokens), positions)
        return model.lm_head.logits(hidden[:, -1]).float().cpu().numpy()

    return next_logits


def grid_lengths(context_tokens: int, shortest: int = 128) -> list[int]:
    """Lengths of the grid: doubling from `shortest` to the model's whole context, which is always the last."""
    lengths = []
    length = shortest
    while length < context_tokens:
        lengths.append(length)
        length *= 2
    return [*lengths, context_tokens]


def plain_words(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the tokens that are a lower-case word of 4 to 8 letters: what is planted.

    Raises:
        DataError: the vocabulary has fewer than `NUM_CHOICES` of them.
    """
    ordinary = (token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids)
    words = [token for token in ordinary if _PLAIN_WORD.fullmatch(tokenizer.token_bytes(token, b""))]
    if len(words) < NUM_CHOICES:
        raise DataError(
            f"the tokenizer has {len(words)} lower-case words of 4 to 8 letters, a needle needs {NUM_CHOICES}; "
            "leave the needle out of the tasks"
        )
    return np.array(words, dtype=np.int64)
