"""Speculative decoding: draft several tokens ahead, and let the model verify them in one step.

A step reads every weight once, whether it computes one token or five, so verifying drafts is nearly free where memory
bandwidth is the limit. `herd.infer.draw` accepts a draft only if it is the token that would be drawn anyway, with the
answer's own random numbers; so answers are the same with and without speculation, sampled ones too. Its gain is
measured as it runs; where there is none it stays off, except for a trial now and then.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; prompt look-up: Saxena 2023.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from herd.infer.draw import sample_tokens
from herd.infer.request import Answer
from herd.infer.runner import Output, Runner
from herd.infer.scheduler import PrefillChunk, StepPlan

LOOKUP = "lookup"
"""The option that drafts by prompt look-up, without a model."""

_NUM_DRAFTS = 4
_TRY_EVERY = 16  # steps; then the other way is measured again
_MOMENTUM = 0.8  # of the measured speeds


class Guesser(Protocol):
    """A source of drafts."""

    def guess(self, answer: Answer, most: int) -> list[int]:
        """Up to `most` drafts of the next tokens; placeholders if `propose` computes them for the whole batch."""

    def propose(self, plan: StepPlan) -> None:
        """Fill in the drafts of a planned step."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of its own KV cache."""


class PromptLookup:
    """Drafts what followed the previous occurrence of the last three (or two) tokens."""

    cache_bytes = 0

    def guess(self, answer: Answer, most: int) -> list[int]:
        """The tokens that followed the previous occurrence."""
        self._index(answer)
        for length in (3, 2):
            last = tuple(answer.token_range(max(answer.num_tokens - length, 0), answer.num_tokens))
            place = answer.ngrams.get(last) or answer.prompt_ngrams.get(last)
            if place is not None:
                return answer.token_range(place, min(place + most, answer.num_tokens))
        return []

    def _index(self, answer: Answer) -> None:
        """Remember where each n-gram last ended, except those at the last token, which are what is looked up."""
        begin = max(answer.num_indexed, 2)
        if answer.prompt_ngrams:  # another answer has indexed the prompt
            begin = max(begin, len(answer.prompt))
        for stop in range(begin, answer.num_tokens):
            known = answer.prompt_ngrams if stop < len(answer.prompt) else answer.ngrams
            for length in (3, 2):
                if stop >= length:
                    known[tuple(answer.token_range(stop - length, stop))] = stop
        answer.num_indexed = answer.num_tokens

    def propose(self, plan: StepPlan) -> None:
        """Nothing to do: `guess` gives the drafts."""


class DraftModel:
    """Drafts what a smaller model draws with the same random numbers.

    It has its own KV cache with the same block numbers. It computes a sequence only when drafts are requested, and
    catches up on tokens it has not seen.
    """

    def __init__(self, runner: Runner, max_prompt_tokens: int, vocab_size: int) -> None:
        """`vocab_size` is the target model's: with one tokenizer, either may have more unused rows than the other."""
        self._runner, self._most, self._vocab_size = runner, max_prompt_tokens, vocab_size

    @property
    def cache_bytes(self) -> int:
        """Bytes of its KV cache."""
        return self._runner.cache.nbytes

    def guess(self, answer: Answer, most: int) -> list[int]:
        """Placeholders for `most` drafts; none after a token that only the target model has."""
        unseen = answer.token_range(answer.num_drafter_computed, answer.num_tokens)
        return [0] * most if max(unseen) < self._runner.model.config.vocab_size else []

    def propose(self, plan: StepPlan) -> None:
        """Draw the drafts of all answers that have placeholders, one position after another."""
        counts = {answer: len(answer.drafts) for answer in plan.decode if answer.drafts}
        for answer in counts:
            answer.drafts = []
        for step in range(max(counts.values(), default=0)):
            answers = [answer for answer, count in counts.items() if count > step]
            output = self._catch_up(answers) if step == 0 else self._runner.run(self._next_places(answers, step))
            logits = output.logits[[output.rows[answer][-1] for answer in answers], : self._vocab_size]
            places = [len(answer.tokens) + step for answer in answers]
            for answer, token in zip(answers, sample_tokens(answers, places, logits), strict=True):
                answer.drafts.append(token)
                answer.num_drafter_computed = answer.num_tokens + step

    def _catch_up(self, answers: list[Answer]) -> Output:
        """Compute the tokens it has not seen of each sequence, long prompts in chunks; logits after the last tokens."""
        for answer in answers:
            while answer.num_tokens - answer.num_drafter_computed > self._most:
                start = answer.num_drafter_computed
                self._runner.run(StepPlan(chunks=[PrefillChunk(answer, start, start + self._most)]))
                answer.num_drafter_computed += self._most
        return self._runner.run(
            StepPlan(
                chunks=[PrefillChunk(answer, answer.num_drafter_computed, answer.num_tokens) for answer in answers]
            )
        )

    @staticmethod
    def _next_places(answers: list[Answer], step: int) -> StepPlan:
        places = {answer: range(answer.num_tokens + step - 1, answer.num_tokens + step) for answer in answers}
        return StepPlan(decode=list(answers), places=places)


@dataclass
class _Speed:
    """Tokens per second of steps with and without drafts, as a moving average; None before the first."""

    drafted: float | None = None
    plain: float | None = None
    num_steps: int = 0


class Speculation:
    """Decides step by step whether to draft, by the measured speeds with and without."""

    def __init__(self, guesser: Guesser, num_drafts: int = _NUM_DRAFTS, always: bool = False) -> None:
        self._guesser, self._num_drafts, self.always = guesser, num_drafts, always
        self._speeds: dict[int, _Speed] = defaultdict(_Speed)  # by the number of decoding answers, in powers of two
        self._on = False
        self._began = 0.0
        self._seen: dict[Answer, tuple[int, int]] = {}  # number of tokens and drafts of each answer before the step
        self.num_drafted = self.num_accepted = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of a draft model's KV cache."""
        return self._guesser.cache_bytes

    def begin(self, num_decoding: int) -> None:
        """Begin a step: decide whether it drafts."""
        speed = self._speeds[num_decoding.bit_length()]
        speed.num_steps += 1
        trial = speed.num_steps % _TRY_EVERY == 0
        gains = speed.plain is None or speed.drafted is None or speed.drafted > speed.plain
        unknown = speed.drafted is not None and speed.plain is None
        self._on = self.always or (gains != trial and not unknown)
        self._began = time.perf_counter()

    def guess(self, answer: Answer, most: int) -> list[int]:
        """The drafts for one answer; none under penalties or a grammar, which depend on each token before."""
        if not self._on or answer.adjustment is not None or most < 1:
            return []
        return self._guesser.guess(answer, min(most, self._num_drafts))

    def propose(self, plan: StepPlan) -> None:
        """Fill in the drafts of a planned step, and count them."""
        self._guesser.propose(plan)
        self._seen |= {answer: (len(answer.tokens), len(answer.drafts)) for answer in plan.decode}

    def end(self, plan: StepPlan) -> None:
        """End a step and record its speed, unless it also prefilled prompts."""
        seconds = time.perf_counter() - self._began
        seen, self._seen = self._seen, {}
        num_tokens = sum(len(answer.tokens) - before for answer, (before, _) in seen.items())
        num_drafts = sum(count for _, count in seen.values())
        self.num_drafted += num_drafts
        self.num_accepted += sum(len(a.tokens) - before - 1 for a, (before, count) in seen.items() if count)
        if plan.chunks or not plan.decode:
            return
        speed = self._speeds[len(plan.decode).bit_length()]
        rate = num_tokens / seconds
        if num_drafts:
            speed.drafted = rate if speed.drafted is None else _MOMENTUM * speed.drafted + (1 - _MOMENTUM) * rate
        elif not self._on:
            speed.plain = rate if speed.plain is None else _MOMENTUM * speed.plain + (1 - _MOMENTUM) * rate
