"""Search: for each prompt the answer that most samples agree on, or the best of a tree of steps, as conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from herd.config import settings
from herd.data.rows import write_rows
from herd.errors import ConfigError
from herd.evals.answers import prompt_of, reference_of
from herd.evals.scorers import SCORERS
from herd.infer.engine import Engine
from herd.log import say
from herd.post.prompts import apart_from, origin_of, read_prompts
from herd.post.reward import RewardModel
from herd.post.sampling import sample_answers
from herd.rollout.search import VOTES, Found, TreeOptions, self_consistent, tree_search
from herd.run import Run, open_run
from herd.types import Conversation, SamplingParams


@settings
class SearchSettings:
    """Spend more on an answer: a vote among many, or a search over its steps."""

    out: Path
    """Run folder to write."""
    checkpoint: Path
    """The chat model that answers."""
    prompts: Path
    """What is asked: JSONL or Parquet rows with `messages` or `prompt`; a reference `answer` is optional."""
    how: Literal["vote", "tree"] = "vote"
    """A vote among `samples` answers (self-consistency), or a tree of steps that `reward` looks at."""
    reward: Path | None = None
    """The reward model that looks at steps, for the tree."""
    samples: int = 16
    """Answers that vote."""
    by: str = "number"
    """What makes two answers one: `number` (the last), `mathematics` (the final expression) or `words`."""
    expansions: int = 12
    """Beginnings that a tree goes on with."""
    width: int = 4
    """Next steps that are drawn of each beginning."""
    step_tokens: int = 96
    """Longest step, in tokens; a step ends with its line."""
    answer_tokens: int = 384
    """Longest answer, in tokens."""
    temperature: float = 0.8
    """Temperature of answers and steps."""
    least: float = 0.0
    """Answers with a smaller share of the votes (a tree's: a smaller reward, where above 0) are left out."""
    scorer: str = "number"
    """How a chosen answer is compared with the row's `answer`, where there is one, for the figures alone."""
    max_prompts: int = 512
    """Prompts asked, spread evenly over the file."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: a prompt that stands in one of them is left out."""
    seed: int = 1
    """Seed of the sampling."""

    def __post_init__(self):
        if min(self.samples, self.expansions, self.width, self.step_tokens, self.answer_tokens) < 1:
            raise ValueError("samples, expansions, width, step_tokens and answer_tokens must be at least 1")
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0: the samples have to differ")
        if self.by not in VOTES:
            raise ValueError(f"by must be one of {', '.join(VOTES)}")
        if self.scorer not in SCORERS:
            raise ValueError(f"scorer must be one of {', '.join(SCORERS)}")
        if (self.how == "tree") != (self.reward is not None):
            raise ValueError("a tree needs `reward`, a vote has no use for it")


def run(settings: SearchSettings) -> Path:
    """Write `conversations.jsonl`: the chosen answers with their `score`, to train on."""
    inputs: dict[str, Any] = {name: getattr(settings, name) for name in ("checkpoint", "reward", "prompts")}
    inputs["benchmarks"] = [*settings.benchmarks]
    with open_run(settings.out, stage="rl search", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        rows = apart_from(read_prompts(settings.prompts, settings.max_prompts), settings.benchmarks)
        prompts = [prompt_of(row) for row in rows]
        if not prompts:
            raise ConfigError("no prompt is left to answer")
        found, single = _voted(run, settings, prompts) if settings.how == "vote" else _searched(settings, prompts)
        kept = [place for place, one in enumerate(found) if one.text and one.worth >= settings.least]
        kept = kept if settings.least else [place for place, one in enumerate(found) if one.text]
        write_rows(run.path / "conversations.jsonl", [_row(rows[n], prompts[n], found[n]) for n in kept])
        figures: dict[str, float] = {"prompts": len(prompts), "kept": len(kept), "left_out": len(prompts) - len(kept)}
        figures |= _right(settings, rows, found, single, kept)
        told = f", {figures['right']:.3f} of them right" if "right" in figures else ""
        one = f" (a single sample {figures['right_alone']:.3f})" if "right_alone" in figures else ""
        say(f"  {len(kept):,} answers kept, {figures['left_out']:,} left out{told}{one}")
        run.finish(figures)
    return run.path


def _voted(run: Run, settings: SearchSettings, prompts: Sequence[Conversation]) -> tuple[list[Found], list[list[str]]]:
    params = SamplingParams(
        temperature=settings.temperature,
        top_p=1.0,
        max_tokens=settings.answer_tokens,
        n=settings.samples,
        seed=settings.seed,
    )
    answers = sample_answers(settings.checkpoint, prompts, params, run.path / "state")
    return [self_consistent(one, by=settings.by) for one in answers], answers


def _searched(settings: SearchSettings, prompts: Sequence[Conversation]) -> tuple[list[Found], list[list[str]]]:
    assert settings.reward is not None
    names = ("expansions", "width", "step_tokens", "answer_tokens", "temperature", "seed")
    options = TreeOptions(**{name: getattr(settings, name) for name in names})
    rewards = RewardModel(settings.reward)
    return tree_search(Engine(settings.checkpoint), prompts, rewards.score, options), []


def _row(row: dict, prompt: Conversation, found: Found) -> dict[str, Any]:
    messages = [*prompt, {"role": "assistant", "content": found.text}]
    return {"messages": messages, "source": "search", "score": round(found.worth, 5)} | origin_of(row)


def _right(
    settings: SearchSettings,
    rows: Sequence[dict],
    found: Sequence[Found],
    single: Sequence[Sequence[str]],
    kept: Sequence[int],
) -> dict[str, float]:
    """The share of the kept answers that are right, and of single samples of the same prompts, where rows say so."""
    score = SCORERS[settings.scorer]
    known = [(place, reference) for place in kept if (reference := reference_of(rows[place])) is not None]
    if not known:
        return {}
    figures = {"right": fmean(score(found[place].text, [reference]) for place, reference in known)}
    if single:
        alone = [fmean(score(text, [reference]) for text in single[place]) for place, reference in known]
        figures["right_alone"] = fmean(alone)
    return {name: round(value, 4) for name, value in figures.items()}
