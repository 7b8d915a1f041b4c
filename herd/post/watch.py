"""What a round of DPO did to a model beside its margin: likelihoods, lengths and refusals, with warnings on drift."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from herd.data.preferences import Pairs
from herd.evals.statistics import paired_difference, summary
from herd.infer.engine import Engine
from herd.log import say
from herd.model.llama import LlamaForCausalLM
from herd.run import atomic_write, read_record
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.job import Job
from herd.types import SamplingParams

_REFUSAL = re.compile(
    r"(?:i(?:'m| am)? (?:sorry|cannot|can't|can not|unable|won't|will not|must decline|do not know|don't know)"
    r"|i(?:'m| am) (?:not able|unable)|(?:sorry|unfortunately), (?:but )?i\b|as an ai\b)",
    re.IGNORECASE,
)
_BEGINNING = 120  # characters of an answer in which a refusal is told
_LONGER, _SHORTER = 1.25, 0.8  # of the words before: beyond these an answer's length has drifted
_FEWER_NATS = 1.0  # by which a chosen response may have become less likely


def refuses(answer: str) -> bool:
    """Whether an answer declines, or says that it does not know, in its first words."""
    return _REFUSAL.search(answer.strip()[:_BEGINNING].replace("’", "'")) is not None


class Watch:
    """The drift of one DPO run: ask `begin` before training and `end` after it, with the run's last means."""

    def __init__(self, job: Job, pairs: Pairs, *, prompts: int, max_tokens: int) -> None:
        self.job, self.file, self.max_tokens = job, job.run.path / "watched.json", max_tokens
        extreme = np.flatnonzero(pairs.is_extreme())
        self.chosen, self.rejected = (_responses(pairs, places) for places in (extreme[::2], extreme[1::2]))
        step = max(len(self.chosen) // max(prompts, 1), 1)
        self.prompts = [prompt for prompt, _ in self.chosen[::step]][:prompts]

    def begin(self) -> None:
        """Keep what the model answers before it learns; told once where no process holds it whole."""
        if self.prompts and not isinstance(self.job.model, LlamaForCausalLM):
            say("  answers are not watched: no process holds the whole model to write them")
            self.prompts = []
        if self.prompts and not self.file.exists():
            atomic_write(self.file, json.dumps(self._answers()))

    def end(self, figures: Mapping[str, Any], beta: float) -> dict[str, float]:
        """Figures of likelihoods, lengths and refusals; what has drifted is warned of."""
        found, warnings = lengths_of_pairs([n for _, n in self.chosen], [n for _, n in self.rejected])
        for more, told in (drift_of_likelihoods(figures, beta), self._drift()):
            found, warnings = found | more, warnings + told
        for warning in warnings:
            say(f"  warning: {warning}")
        return found | {"warnings": len(warnings)}

    def _drift(self) -> tuple[dict[str, float], list[str]]:
        return drift_of_answers(read_record(self.file), self._answers()) if self.prompts else ({}, [])

    def _answers(self) -> list[str]:
        assert isinstance(self.job.model, LlamaForCausalLM)
        return answers_now(self.job.model, self.job.tokenizer, self.prompts, self.max_tokens)


def _responses(pairs: Pairs, places: np.ndarray) -> list[tuple[list[int], int]]:
    """Of each document the prompt's tokens, and how many tokens of the response are learned."""
    found = []
    for place in places.tolist():
        trained = pairs.documents.is_trained(place)
        assert trained is not None  # a pair has its prompt masked
        found.append((pairs.documents.tokens(place)[: int(trained.argmax())].tolist(), int(trained.sum())))
    return found


def answers_now(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[list[int]], max_tokens: int
) -> list[str]:
    """The likeliest answer of a model in memory to each prompt, given as token ids."""
    engine = Engine.of(model, tokenizer)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    requests = [engine.request(prompt, params) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    while not all(request.finished for request in requests):
        engine.step()
    return [tokenizer.decode(request.leader.tokens, skip_special=True) for request in requests]


def drift_of_answers(before: Sequence[str], after: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Figures of the same prompts answered before and after, and what to warn of.

    A change counts where the 95 % interval over prompts leaves out none, and of length where it is beyond a quarter.
    """
    words = [[float(len(text.split())) for text in texts] for texts in (before, after)]
    refused = [[float(refuses(text)) for text in texts] for texts in (before, after)]
    figures: dict[str, float] = {}
    for name, values in (("answer_words", words), ("refused", refused)):
        change = paired_difference(values[1], values[0])
        means = [sum(one) / len(one) for one in values]
        figures |= {f"{name}_before": means[0], f"{name}_after": means[1]}
        figures |= {f"{name}_change_low": change.low, f"{name}_change_high": change.high}
    figures = {name: round(value, 4) for name, value in figures.items()}
    warnings = []
    ratio = figures["answer_words_after"] / max(figures["answer_words_before"], 1e-9)
    if _is_shown(figures, "answer_words") and not _SHORTER <= ratio <= _LONGER:
        kind = "longer" if ratio > 1 else "shorter"
        warnings.append(
            f"answers have become {kind}: {figures['answer_words_after']:.1f} words, "
            f"{figures['answer_words_before']:.1f} before; pairs may teach length"
        )
    if _is_shown(figures, "refused"):
        kind = "more" if figures["refused_after"] > figures["refused_before"] else "less"
        warnings.append(
            f"the model refuses {kind}: {figures['refused_after']:.0%} of the prompts, "
            f"{figures['refused_before']:.0%} before"
        )
    return figures, warnings


def _is_shown(figures: Mapping[str, float], name: str) -> bool:
    return figures[f"{name}_change_low"] > 0 or figures[f"{name}_change_high"] < 0


def drift_of_likelihoods(figures: Mapping[str, Any], beta: float) -> tuple[dict[str, float], list[str]]:
    """How many nats likelier responses are than under the reference, chosen and rejected, from a run's last means."""
    if "chosen_reward" not in figures:
        return {}, []
    found = {f"{name}_gain_nats": round(figures[f"{name}_reward"] / beta, 4) for name in ("chosen", "rejected")}
    if found["chosen_gain_nats"] >= -_FEWER_NATS:
        return found, []
    return found, [
        f"the chosen responses have become less likely ({found['chosen_gain_nats']:+.2f} nats each, the rejected "
        f"{found['rejected_gain_nats']:+.2f}): the margin grows by unlearning both; raise nll, or lower the rate"
    ]


def lengths_of_pairs(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[dict[str, float], list[str]]:
    """Tokens of chosen and rejected responses, and a warning where one side is clearly the longer."""
    means = [summary([float(one) for one in side]).value for side in (chosen, rejected)]
    change = paired_difference([float(one) for one in chosen], [float(one) for one in rejected])
    found = {"chosen_tokens": round(means[0], 2), "rejected_tokens": round(means[1], 2)}
    ratio = means[0] / max(means[1], 1e-9)
    if (change.low > 0 or change.high < 0) and not _SHORTER <= ratio <= _LONGER:
        kind = "longer" if ratio > 1 else "shorter"
        return found, [
            f"chosen responses are {kind} ({means[0]:.0f} tokens, rejected {means[1]:.0f}): length alone may be learned"
        ]
    return found, []
