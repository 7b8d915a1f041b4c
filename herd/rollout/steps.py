"""Preferences among steps that nobody marks: a step is worth how often answers that go on from it end right.

From one beginning several next steps are drawn, and from each of them several endings, which a verifier judges. The
best step against the worst is a pair for a reward model; the next steps are drawn from the best.

Source: Wang et al. 2024 (Math-Shepherd); The Llama 3 Herd of Models, section 4.3.3 (step-wise reward models).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from herd.infer.engine import Engine
from herd.log import progress
from herd.rollout.search import TreeOptions, endings, next_steps
from herd.types import Conversation

Worth = Callable[[Sequence[int], Sequence[str]], list[float]]
"""(each answer's place among the prompts, whole answers) -> figures from 0 to 1."""


class StepPair(NamedTuple):
    """Two beginnings of an answer to one prompt that differ in their last step."""

    place: int  # of the prompt
    chosen: str
    rejected: str
    chosen_score: float  # share (0 to 1) of its endings that are right
    rejected_score: float


def step_pairs(
    engine: Engine,
    prompts: Sequence[Conversation],
    worth: Worth,
    options: TreeOptions,
    *,
    completions: int,
    min_gap: float,
) -> list[StepPair]:
    """Pairs of all prompts, at most one for each of `expansions` steps; steps nearly as good as one another are none.

    Raises:
        RequestError: a prompt is too long.
    """
    encoded, found = [engine.encode(prompt) for prompt in prompts], list[StepPair]()
    texts, going = [""] * len(prompts), list(range(len(prompts)))
    with progress("steps", total=options.expansions, unit="steps") as bar:
        for turn in range(options.expansions):
            drawn = next_steps(engine, [(encoded[place], texts[place]) for place in going], options, 2 * turn)
            steps = [(place, *step) for place, several in zip(going, drawn) for step in dict.fromkeys(several)]
            open_ones = [(encoded[place], text) for place, text, whole in steps if not whole]
            ended = iter(endings(engine, open_ones, options, completions, 2 * turn + 1))
            wholes = [[text] if whole else next(ended) for _, text, whole in steps]
            places = [place for (place, _, _), several in zip(steps, wholes) for _ in several]
            scores = iter(worth(places, [text.strip() for several in wholes for text in several]))
            values = [fmean(next(scores) for _ in several) for several in wholes]
            going = []
            for place in dict.fromkeys(place for place, _, _ in steps):
                own = [(value, text, whole) for (of, text, whole), value in zip(steps, values) if of == place]
                best, worst = max(own, key=lambda one: one[0]), min(own, key=lambda one: one[0])
                if best[0] - worst[0] >= min_gap:
                    found.append(StepPair(place, best[1].strip(), worst[1].strip(), best[0], worst[0]))
                texts[place] = best[1]
                going += [] if best[2] else [place]
            bar.advance()
            if not going:
                break
    return [pair for pair in found if pair.chosen and pair.rejected and pair.chosen != pair.rejected]
