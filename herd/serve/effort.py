"""More thought by drawing more: several answers, of which the one that most agree on is told (self-consistency).

Source: Wang et al. 2022 (self-consistency); The Llama 3 Herd of Models, section 5 (maj@K).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from herd.rollout.search import self_consistent
from herd.serve.prompts import is_ids
from herd.serve.speech import Speech
from herd.serve.turn import Turn

EFFORT_FIELDS = ("reasoning_effort", "reasoning.effort", "output_config.effort")
"""The dialects' fields for it."""


@dataclass(frozen=True)
class Effort:
    """How many answers each word for effort draws, and what makes two of them one."""

    answers: Mapping[str, int]
    by: str = "number"  # of `herd.rollout.search.VOTES`

    @property
    def words(self) -> list[str]:
        """The words that have an effect."""
        return [word for word, count in self.answers.items() if count > 1]

    def vote(self, turn: Turn) -> Vote | None:
        """The vote that a turn asks for; none where it would choose among equals or is no conversation."""
        count = self.answers.get(turn.effort or "", 1)
        if count < 2 or turn.params.num_drawn > 1 or turn.params.temperature == 0 or turn.must_call or turn.empty:
            return None
        return None if is_ids(turn.inputs[0]) or isinstance(turn.inputs[0], str) else Vote(count, self.by)


@dataclass(frozen=True)
class Vote:
    """One request's vote."""

    count: int
    by: str

    def drawn(self, turn: Turn) -> Turn:
        """The turn, drawn so many times."""
        return replace(turn, params=replace(turn.params, n=self.count))

    def chosen(self, answers: Sequence[Speech]) -> Speech:
        """The answer that most agree on; the first that is whole where none says what could be agreed on.

        Its number of tokens is that of all: they were computed for it.
        """
        whole = [one for one in answers if one.finish_reason == "stop" and one.text]
        found = self_consistent([one.text for one in whole], by=self.by)
        chosen = next((one for one in whole if one.text == found.text), (whole or answers)[0])
        chosen.votes = {"answers": len(answers), "agreed": round(found.worth * found.num_answers)}
        chosen.num_tokens = sum(one.num_tokens for one in answers)
        return chosen
