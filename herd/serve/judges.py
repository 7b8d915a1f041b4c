"""Who judges answers where more effort is asked for: a reward model, or a function of a Python file of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from herd.errors import ConfigError
from herd.post.reward import RewardModel
from herd.rollout.search import Score
from herd.toolbox.functions import module_of
from herd.types import Conversation


def open_judge(place: Path) -> Score:
    """What scores conversations by their last answer: a folder's reward model, or `score(messages, answer)` of a file.

    Raises:
        ConfigError: the file is not there, fails as it is read, or has no such function.
        CheckpointError: the folder holds no reward model.
    """
    if place.suffix != ".py":
        return RewardModel(place).score
    module = module_of(place, "judge")
    one = getattr(module, "score", None)
    if not callable(one):
        raise ConfigError(f"judge: {place} defines no `score(messages, answer)`, a figure that is larger for better")

    def score(talks: Sequence[Conversation]) -> list[float]:
        found = [float(one(talk[:-1], talk[-1]["content"])) for talk in talks]
        if not all(map(math.isfinite, found)):
            raise ValueError(f"{place}: `score` gave {found}, expected finite numbers")
        return found

    return score
