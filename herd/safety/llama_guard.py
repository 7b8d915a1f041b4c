"""A guard that is a language model: Llama Guard 3, or one's own model trained on its prompt.

Its verdict is the probability that the first word of its answer is `unsafe`; the categories are what it says next.
Only the categories that count stand in the prompt.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from herd.errors import DataError
from herd.infer.engine import Engine
from herd.safety.guard import Verdict
from herd.safety.policy import PLACES, Policy, Where, only, read_policy
from herd.safety.readings import joined_readings, readings
from herd.safety.words import Words
from herd.tokenizer.guard import Verdict as Said
from herd.tokenizer.guard import guard_prompt, read_verdict, render_guard
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Message, SamplingParams

POLICY = "safety/hazards.yaml"
_ROLES = {"input": "user", "output": "assistant", "tool": "user"}
_TOP = 20  # likeliest first tokens that are looked at
_BLANKS = 2  # tokens of white space that may come first
_CODES_TOKENS = 24


class LlamaGuard:
    """Judges texts as `Guard` does, a conversation at a time. It may be used from several threads."""

    def __init__(self, engine: Engine, policy: Policy, thresholds: dict[str, float] | None = None) -> None:
        self.engine, self.policy = engine, policy
        self.thresholds = thresholds or dict.fromkeys(PLACES, 0.5)
        self._lock = threading.Lock()
        self._words = Words(_vocabulary(engine.tokenizer))

    @property
    def labels(self) -> list[str]:
        """The codes of its policy."""
        return [*self.policy.categories]

    def enabled(self, where: Where, categories: Collection[str] | None = None) -> list[str]:
        """The codes that count there."""
        codes = self.policy.at(where)
        return codes if categories is None else [code for code in only(self.policy, categories) if code in codes]

    def judge(
        self,
        texts: Sequence[str],
        where: Where = "input",
        *,
        categories: Collection[str] | None = None,
        threshold: float | None = None,
    ) -> list[Verdict]:
        """A verdict on each text, on what it says and on what it says behind a disguise.

        Raises:
            ConfigError: a category that is none of the policy's.
            RequestError: a text is longer than the model's context.
        """
        found = []
        for text in texts:
            plain, *others = (self._judged(one, where, categories, threshold) for one in readings(text, self._words))
            best = max((plain, *others), key=lambda verdict: verdict.probability)
            found.append(best if best is plain else replace(best, reading="normalised"))
        return found

    def judge_together(
        self,
        texts: Sequence[str],
        where: Where = "input",
        *,
        categories: Collection[str] | None = None,
        threshold: float | None = None,
    ) -> Verdict | None:
        """The verdict on what several messages say together; None where there are fewer than two."""
        told = [self._judged(one, where, categories, threshold) for one in joined_readings(texts, self._words)]
        return replace(max(told, key=lambda verdict: verdict.probability), reading="joined") if told else None

    def _judged(self, text: str, where: Where, categories: Collection[str] | None, threshold: float | None) -> Verdict:
        counted = self.enabled(where, categories)
        limit = self.thresholds[where] if threshold is None else threshold
        if not counted or not text.strip():
            return Verdict(False, 0.0, limit, (), where, scores={})
        names = {code: self.policy.categories[code].name for code in counted}
        scopes = {code: scope for code in counted if (scope := self.policy.categories[code].scope)}
        talk = [Message(role=_ROLES[where], content=text)]
        prompt = render_guard(self.engine.tokenizer, talk, categories=names, descriptions=scopes).tokens
        with self._lock:
            prompt, probability = self._first(prompt)
            codes = self._codes(prompt, names) if probability >= limit else ()
        scores = {code: round(probability, 4) if code in codes else 0.0 for code in counted}
        return Verdict(probability >= limit, round(probability, 6), limit, codes, where, scores=scores)

    def _first(self, prompt: list[int]) -> tuple[list[int], float]:
        """The prompt with the white space that the answer begins with, and how likely `unsafe` comes then."""
        tokenizer = self.engine.tokenizer
        unsafe = tokenizer.encode("unsafe")[0]
        for _ in range(_BLANKS + 1):
            answer = self._answer(prompt, SamplingParams(temperature=0.0, max_tokens=1, logprobs=_TOP))
            first = answer.logprobs[0]
            likely = {first.token: first.logprob, **dict(first.top)}
            if tokenizer.decode([first.token]).strip():
                break
            prompt = [*prompt, first.token]
        return prompt, math.exp(likely[unsafe]) if unsafe in likely else 0.0

    def _codes(self, prompt: list[int], names: dict[str, str]) -> tuple[str, ...]:
        """The categories that it names once it has said `unsafe`."""
        unsafe = self.engine.tokenizer.encode("unsafe")
        answer = self._answer([*prompt, *unsafe], SamplingParams(temperature=0.0, max_tokens=_CODES_TOKENS))
        try:
            return read_verdict(f"unsafe{answer.text}", names).categories
        except DataError:
            return ()

    def _answer(self, prompt: list[int], params: SamplingParams) -> Any:
        return self.engine.generate(cast(Any, [prompt]), params)[0]


def open_llama_guard(folder: Path | str, *, policy: Path | str | None = None, **options: Any) -> LlamaGuard:
    """A checkpoint as a guard; its policy is `policy`, else a `policy.yaml` in its folder, else the shipped hazards.

    Raises:
        CheckpointError: no language model lies there.
        ConfigError: the policy cannot be read.
    """
    own = Path(folder) / "policy.yaml"
    return LlamaGuard(Engine(folder, **options), read_policy(policy or (own if own.exists() else POLICY)))


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Whole words of a byte-level vocabulary, in the order in which they were merged."""
    pieces = (tokenizer.token_bytes(token, b"") for token in range(tokenizer.vocab_size))
    texts = (piece.decode("utf-8", "replace") for piece in pieces if piece[:1] == b" ")
    return [text[1:].lower() for text in texts]


def talk_of(text: str, where: Where, codes: Collection[str], policy: Policy) -> dict[str, Any]:
    """A labelled row as a conversation that teaches a language model to be such a guard (`herd sft`)."""
    counted = policy.at(where)
    names = {code: policy.categories[code].name for code in counted}
    scopes = {code: scope for code in counted if (scope := policy.categories[code].scope)}
    question = guard_prompt([Message(role=_ROLES[where], content=text)], names, scopes)
    found = tuple(code for code in counted if code in codes)
    said = "safe" if not found else "unsafe\n" + ",".join(Said(False, found).categories)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": said}]}
