"""More thought by drawing more: several answers of which one is told, or a search over the steps of one.

Told is the answer that most agree on (self-consistency), the best by a judge, or the one that most agree on where each
vote weighs what the judge thinks of it. A judge is a reward model, or a verifier: a function of one's own.

Source: Wang et al. 2022 (self-consistency); The Llama 3 Herd of Models, sections 4.2.4, 4.3.3 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from herd.rollout.search import VOTES, Score, self_consistent
from herd.serve.prompts import is_ids
from herd.serve.speech import Speech
from herd.serve.turn import Turn
from herd.types import Conversation, Message

EFFORT_FIELDS = ("reasoning_effort", "reasoning.effort", "output_config.effort")
"""The dialects' fields for it."""
How = Literal["vote", "best", "weighted", "tree"]
TREE_WIDTH = 4
"""Next steps that are drawn of a beginning."""


@dataclass(frozen=True)
class Effort:
    """How many answers each word for effort draws, and which of them is told."""

    answers: Mapping[str, int]
    by: str = "number"  # of `herd.rollout.search.VOTES`: what makes two answers one
    how: How = "vote"
    judge: Score | None = None

    @property
    def words(self) -> list[str]:
        """The words that have an effect."""
        return [word for word, count in self.answers.items() if count > 1]

    def choice(self, turn: Turn) -> Choice | None:
        """What a turn asks for; None where it chose among equals, or of a tree that could not call or keep a form."""
        count = self.answers.get(turn.effort or "", 1)
        if count < 2 or turn.params.num_drawn > 1 or turn.params.temperature == 0 or turn.must_call or turn.empty:
            return None
        if self.how == "tree" and (
            turn.tools or turn.params.json_schema is not None or turn.params.logprobs is not None
        ):
            return None
        if is_ids(turn.inputs[0]) or isinstance(turn.inputs[0], str):
            return None
        return Choice(count, self.by, self.how, self.judge)


@dataclass(frozen=True)
class Choice:
    """One request's choice among its answers."""

    count: int
    by: str
    how: How = "vote"
    judge: Score | None = None

    def drawn(self, turn: Turn) -> Turn:
        """The turn, drawn so many times; a tree draws by itself."""
        return turn if self.how == "tree" else replace(turn, params=replace(turn.params, n=self.count))

    def chosen(self, answers: Sequence[Speech], talk: Conversation) -> Speech:
        """The answer that is told; among those that are whole, where there are any.

        Its number of tokens is that of all: they were computed for it.
        """
        whole = [one for one in answers if one.finish_reason == "stop" and one.text]
        among = whole or answers
        texts, scores = [one.text for one in among], None
        if self.judge is not None and whole:
            scores = self.judge([[*talk, Message(role="assistant", content=text.strip())] for text in texts])
        text = chosen_of(texts, self.how if scores else "vote", self.by, scores) if whole else texts[0]
        chosen = next(one for one in among if one.text == text)
        key = VOTES[self.by](text)
        agreed = sum(VOTES[self.by](one) == key for one in texts) if key and whole else 0
        chosen.votes = {"answers": len(answers), "agreed": agreed}
        chosen.num_tokens = sum(one.num_tokens for one in answers)
        return chosen


def chosen_of(texts: Sequence[str], how: str, by: str, scores: Sequence[float] | None) -> str:
    """The answer to tell of several; where none says what could be agreed on, the best one, or else the first."""
    if scores is not None and how == "best":
        return texts[max(range(len(texts)), key=lambda at: scores[at])]
    if scores is None:
        return self_consistent(texts, by=by).text or texts[0]
    top, votes = max(scores), dict[str, float]()
    for text, score in zip(texts, scores, strict=True):
        if key := VOTES[by](text):
            votes[key] = votes.get(key, 0.0) + math.exp(score - top)
    if not votes:
        return texts[max(range(len(texts)), key=lambda at: scores[at])]
    best = max(votes, key=lambda key: votes[key])
    return min((text for text in texts if VOTES[by](text) == best), key=len)


def talk_of(turn: Turn) -> Conversation:
    """The conversation that a turn's answers are judged in."""
    return cast(Conversation, turn.inputs[0])
