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
from herd.evals.subject import Local, Model
from herd.tokenizer.chat import render
from herd.types import Message, SamplingParams

MAX_GEN_TOKENS = 256
"""Longest answer where a task says nothing, as in the harness's own models."""


class HarnessModel(LM):
    """A checkpoint in any format that Herd opens, or an adapter (`herd.evals.adapted`).

    A prompt beyond the context is an error, or with `cut` loses its beginning as in the harness's own models;
    `num_cut` counts these.

    Raises:
        RequestError: a prompt with its answer is longer than the context, and `cut` is not given.
    """

    def __init__(self, path: Model | str | Local, *, cut: bool = False) -> None:
        super().__init__()
        self.cut, self.num_cut = cut, 0
        self.subject = path if isinstance(path, Local) else Local(Path(path) if isinstance(path, str) else path)

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
            return self._within(Continuation(ids, 1))
        stem = context.rstrip()
        return self._within(continuation(self._encode(stem), self._encode(context + scored)))

    def _within(self, one: Continuation) -> Continuation:
        """The end of it that fits, where prompts may be cut."""
        beyond = len(one.ids) - 1 - self.subject.engine.max_context
        if not self.cut or beyond <= 0:
            return one
        self.num_cut += 1
        return Continuation(one.ids[beyond:], max(one.scored_from - beyond, 1))

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
            prompts = [self._prompt(requests[number].args[0], params.max_tokens) for number in numbers]
            for number, text in zip(numbers, self.subject.generate_from(prompts, params), strict=True):
                texts[number] = text
        return texts

    def _prompt(self, text: str, answer_tokens: int) -> list[int]:
        """The ids of a prompt; where it may be cut, the end of it that leaves room for the answer."""
        ids, room = self._encode(text), self.subject.engine.max_context - answer_tokens
        if not self.cut or len(ids) <= room:
            return ids
        if room < 1:
            raise RequestError(f"answers of {answer_tokens:,} tokens leave no room for a prompt; give max_gen_toks")
        self.num_cut += 1
        return ids[-room:]

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
