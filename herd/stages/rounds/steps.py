"""Steps: preferences among the next steps of an answer, by how often what follows them ends right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.rows import write_rows
from herd.errors import ConfigError, DataError
from herd.evals.answers import prompt_of
from herd.evals.scorers import SCORERS
from herd.infer.engine import Engine
from herd.log import say
from herd.post.prefer import strength
from herd.post.prompts import apart_from, origin_of, read_prompts
from herd.rollout.rewards import open_reward
from herd.rollout.sample import Sample
from herd.rollout.search import TreeOptions
from herd.rollout.steps import step_pairs
from herd.run import open_run
from herd.types import Message


@settings
class StepsSettings:
    """Pair the next steps of answers, for a reward model that judges beginnings."""

    out: Path
    """Run folder to write."""
    checkpoint: Path
    """The chat model that answers."""
    prompts: Path
    """What is asked: JSONL or Parquet rows with `messages` or `prompt`, and what the reward reads."""
    reward: str = "answer"
    """What judges whole answers: `answer` (by `scorer`), `checks`, `all_checks`, `tests`, or a Python file, as for
    `herd rl`."""
    scorer: str = "number"
    """How `answer` compares: a scorer of `herd evaluate`."""
    max_prompts: int = 128
    """Prompts asked, spread evenly over the file."""
    steps: int = 4
    """Steps of an answer that are looked at; a step ends with its line."""
    width: int = 4
    """Next steps drawn of each beginning."""
    completions: int = 4
    """Answers that go on from each step: their mean reward is the step's worth."""
    min_gap: float = 0.25
    """Least difference (0 to 1) in worth of the best and the worst step: below it they are no pair."""
    step_tokens: int = 96
    """Longest step, in tokens."""
    answer_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.8
    """Temperature of steps and answers."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: a prompt that stands in one of them is left out."""
    sandbox: str = "full"
    """Level of the sandbox in which tests run (docs/sandbox.md)."""
    seed: int = 1
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        if min(self.max_prompts, self.steps, self.completions, self.step_tokens, self.answer_tokens) < 1:
            raise ValueError("max_prompts, steps, completions, step_tokens and answer_tokens must be at least 1")
        if self.width < 2 or self.temperature <= 0 or not 0 < self.min_gap <= 1:
            raise ValueError("width must be at least 2, temperature above 0, min_gap above 0 and at most 1")
        if self.scorer not in SCORERS:
            raise ValueError(f"scorer must be one of {', '.join(SCORERS)}")


def run(settings: StepsSettings) -> Path:
    """Write `pairs.jsonl`: two beginnings a row, for `herd reward` and then `herd rl search how=tree`.

    Raises:
        DataError: no two steps differ in worth.
    """
    file = Path(settings.reward.partition(".py:")[0].removesuffix(".py") + ".py") if ".py" in settings.reward else None
    inputs: dict[str, Any] = {"checkpoint": settings.checkpoint, "prompts": settings.prompts, "reward": file}
    inputs["benchmarks"] = [*settings.benchmarks]
    judge = open_reward(settings.reward, scorer=settings.scorer, sandbox=settings.sandbox)
    if judge.reply is not None:
        raise ConfigError(f"{settings.reward}: has a `reply`; steps are of one answer, without an environment")
    with open_run(settings.out, stage="rounds steps", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        rows = apart_from(read_prompts(settings.prompts, settings.max_prompts), settings.benchmarks)
        prompts = [prompt_of(row) for row in rows]

        def worth(places: Sequence[int], texts: Sequence[str]) -> list[float]:
            talks = [[*prompts[place], Message(role="assistant", content=text)] for place, text in zip(places, texts)]
            return judge.reward([rows[place] for place in places], [Sample([], talk) for talk in talks])

        names = ("width", "step_tokens", "answer_tokens", "temperature", "seed")
        options = TreeOptions(expansions=settings.steps, **{name: getattr(settings, name) for name in names})
        engine, sizes = Engine(settings.checkpoint), (settings.completions, settings.min_gap)
        found = step_pairs(engine, prompts, worth, options, completions=sizes[0], min_gap=sizes[1])
        if not found:
            raise DataError(
                f"no two steps of {len(rows):,} prompts differ by {settings.min_gap} in how often what follows is "
                "right; raise width or completions, or ask what is neither too easy nor too hard"
            )
        pairs = [
            {"prompt": prompts[one.place], "chosen": one.chosen, "rejected": one.rejected}
            | {"strength": strength(one.chosen_score - one.rejected_score)}
            | {"chosen_score": round(one.chosen_score, 4), "rejected_score": round(one.rejected_score, 4)}
            | {"kind": "step"}
            | {name: value for name, value in origin_of(rows[one.place]).items() if name != "kind"}
            for one in found
        ]
        write_rows(run.path / "pairs.jsonl", pairs)
        say(f"  {len(pairs):,} pairs of steps from {len(rows):,} prompts")
        run.finish({"prompts": len(rows), "pairs": len(pairs)})
    return run.path
