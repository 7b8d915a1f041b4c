"""Constrained decoding: an answer follows a JSON schema, a regular expression, a grammar or a list of choices.

llguidance computes which tokens may come next (`herd/infer/grammar.py`); this file masks the logits of the others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.errors import RequestError
from herd.infer.grammar import Compiler, Vocabulary, fault_of, form_of
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import SamplingParams


class Guide:
    """The state of one answer in its grammar."""

    def __init__(self, form: str, matcher: Any) -> None:
        self._form, self._matcher = form, matcher

    def fork(self) -> Guide:
        """A copy in the same state, for another answer of the request."""
        return Guide(self._form, self._matcher.deep_copy())

    def mask(self, logits: Tensor) -> None:
        """Set the logits (V,) of tokens that may not come next to minus infinity, in place."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: logits.shape[0]].astype(bool))
        if allowed.shape[0] < logits.shape[0]:
            allowed = torch.cat((allowed, torch.zeros(logits.shape[0] - allowed.shape[0], dtype=torch.bool)))
        logits.masked_fill_(~allowed.to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Advance by a drawn token."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Only the end token may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def fault(self) -> RequestError | None:
        """Why the grammar allows neither another token nor the end; None while it allows one."""
        return fault_of(self._form, self._matcher)


class GuideMaker:
    """Compiles grammars for one tokenizer; the token `end_id` ends an answer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int | None) -> None:
        self.compiler = Compiler(partial(Vocabulary.of, tokenizer), vocab_size, end_id)

    def compile(self, params: SamplingParams) -> Guide | None:
        """The guide for the given parameters; None if they do not constrain the answer.

        Raises:
            RequestError: the schema, expression or grammar is wrong or too large, or llguidance is not installed.
        """
        form = form_of(params)
        return None if form is None else Guide(form, self.compiler.matcher(form, getattr(params, form)))
