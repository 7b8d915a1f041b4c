"""Changes to an answer's logits before a token is drawn: penalties, biases, a grammar, a minimum length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from herd.errors import RequestError
from herd.infer.guide import Guide
from herd.types import SamplingParams

_LARGEST = 1e30  # of a penalized logit


class Adjustment:
    """One answer's changes to its logits, and the token counts that they need.

    They apply in vLLM's order: repetition, frequency and presence penalty, bias, then forbidden tokens.
    """

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int], stop_ids: Iterable[int], guide: Guide | None = None
    ) -> None:
        self.params, self.guide = params, guide
        self._prompt = set(prompt) if params.repetition_penalty != 1 else set()
        self._counts: Counter[int] = Counter()
        self._stop_ids = sorted({*stop_ids, *params.stop_token_ids}) if params.min_tokens else []

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Whether the settings change logits; a grammar is not counted."""
        return bool(
            params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
            or params.logit_bias
            or params.min_tokens
        )

    def accept(self, token: int) -> None:
        """Remember a drawn token."""
        self._counts[token] += 1
        if self.guide is not None:
            self.guide.accept(token)

    @property
    def is_complete(self) -> bool:
        """The grammar is complete: no token may follow."""
        return self.guide is not None and self.guide.is_complete

    @property
    def fault(self) -> RequestError | None:
        """Why no continuation fits the grammar any more; None while one does."""
        return None if self.guide is None else self.guide.fault

    def apply(self, logits: Tensor) -> None:
        """Change one row of logits (V,) in place."""
        params = self.params
        if params.repetition_penalty != 1:
            self._penalize_repetition(logits)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
            logits[ids] -= params.frequency_penalty * counts + params.presence_penalty
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        if self.guide is not None:
            self.guide.mask(logits)
        if self._counts.total() < params.min_tokens:
            self._forbid_the_end(logits)

    def _penalize_repetition(self, logits: Tensor) -> None:
        """Source: Keskar et al. 2019, "CTRL", section 4.1; negative logits are multiplied, as in `transformers`."""
        ids = torch.tensor(list(self._prompt | self._counts.keys()), device=logits.device)
        values, penalty = logits[ids], self.params.repetition_penalty
        changed = torch.where(values > 0, values / penalty, values * penalty)
        logits[ids] = changed.clamp(-_LARGEST, _LARGEST)  # infinite logits would all be equal

    def _forbid_the_end(self, logits: Tensor) -> None:
        """Forbid stop tokens, unless the grammar allows nothing else."""
        kept = logits[self._stop_ids].clone()
        logits[self._stop_ids] = -torch.inf
        if bool(torch.isneginf(logits).all()):
            logits[self._stop_ids] = kept
