"""Herd's engine as the model object of lm-evaluation-harness (extra `eval`), offline: its tasks, our computation.

import lm_eval
from herd.evals.harness import HarnessModel
lm_eval.simple_evaluate(model=HarnessModel("runs/demo"), tasks=[...], task_manager=...)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from herd.errors import RequestError
from herd.evals.likelihood import Continuation, continuation
from herd.evals.subject import Local
from herd.tokenizer.chat import render
from herd.types import Message, SamplingParams

MAX_GEN_TOKENS = 256
"""Longest answer where a task says nothing, as in the harness's own models."""


class HarnessModel(LM):
    """A checkpoint in any format that Herd opens. Nothing is cut: a prompt beyond the context is an error.

    Raises:
        RequestError: a prompt with its answer is longer than the context.
    """

    def __init__(self, path: Path | str | Local) -> None:
        super().__init__()
        self.subject = path if isinstance(path, Local) else Local(Path(path))

    def _encode(self, text: str) -> list[int]:
        """Ids as the harness's own models have them: special tokens as they stand, the checkpoint's own opening."""
        tokenizer = self.subject.engine.tokenizer
        opening = tokenizer.decode(tokenizer.opening) if tokenizer.opening else ""
        return tokenizer.encode(text, bos=not (opening and text.startswith(opening)), allow_special=True)

    @property
    def _prefix(self) -> int:
        tokenizer = self.subject.engine.tokenizer
        return int(tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each request's continuation after its context."""
        found = self.subject.score([self._continuation(*request.args) for request in requests])
        return [(one.nats, one.is_greedy) for one in found]

    def _continuation(self, context: str, scored: str) -> Continuation:
        if not context:
            ids = [self._prefix, *self._encode(scored)]
            return Continuation(ids, 1)
        stem = context.rstrip()
        return continuation(self._encode(stem), self._encode(context + scored))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of whole texts: windows of the context's length, each token scored once."""
        length, windows, owners = self.subject.engine.max_context, [], []
        for number, request in enumerate(requests):
            ids = self._encode(request.args[0])
            rolled = get_rolling_token_windows(ids, self._prefix, max_seq_len=length, context_len=1)
            for before, scored in map(make_disjoint_window, rolled):
                windows.append(Continuation([*before, *scored], len(before)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, one in zip(owners, self.subject.score(windows), strict=True):
            sums[owner] += one.nats
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, those of like settings together."""
        alike: dict[SamplingParams, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(_params(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for params, numbers in alike.items():
            prompts = [self._encode(requests[number].args[0]) for number in numbers]
            for number, text in zip(numbers, self.subject.generate_from(prompts, params), strict=True):
                texts[number] = text
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation in the checkpoint's own template."""
        tokenizer = self.subject.engine.tokenizer
        messages = [Message(**message) for message in chat_history]  # type: ignore[typeddict-item]  # checked there
        return tokenizer.decode(render(tokenizer, messages, generation_prompt=add_generation_prompt).tokens)

    @property
    def tokenizer_name(self) -> str:
        """The vocabulary's fingerprint."""
        return str(self.subject.engine.tokenizer.fingerprint)


def _params(given: dict[str, Any]) -> SamplingParams:
    until = given.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    length = given.get("max_gen_toks") or given.get("max_tokens") or given.get("max_new_tokens") or MAX_GEN_TOKENS
    known = {"until", "max_gen_toks", "max_tokens", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k"}
    if unknown := set(given) - known:
        told = ", ".join(sorted(unknown))
        raise RequestError(f"generation_kwargs: {told} is not offered; known: {', '.join(sorted(known))}")
    drawn = bool(given.get("do_sample")) and float(given.get("temperature", 1.0)) > 0
    return SamplingParams(
        temperature=float(given.get("temperature", 1.0)) if drawn else 0.0,
        top_p=float(given.get("top_p", 1.0)),
        top_k=int(given.get("top_k", 0)) if drawn else 0,
        max_tokens=int(length),
        stop=tuple(one for one in stop if one),
        seed=0,
    )
