"""RL: a model learns from rewards that code can verify, by GRPO or RLOO, on its own answers."""

from __future__ import annotations

from dataclasses import field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch

from herd.config import settings
from herd.errors import ConfigError
from herd.evals.watching import WatchSettings, watched_by, watched_inputs
from herd.formats.checkpoint import Checkpoint
from herd.log import amount, say
from herd.model.llama import LlamaForCausalLM
from herd.parallel.launch import num_processes
from herd.post.prompts import apart_from, read_prompts
from herd.rollout.environments import PREFIX, Environment
from herd.rollout.rewards import Judge, open_reward
from herd.rollout.rows import Normalise
from herd.rollout.sample import Limits
from herd.rollout.source import FIGURES, Plan, Reference, Rollouts, fitting
from herd.train.job import Job, training
from herd.train.metrics import last_means
from herd.train.objectives import label_log_probs, policy_gradient
from herd.train.optimizer import OptimizerSettings
from herd.train.schedule import BatchSettings, ScheduleSettings
from herd.train.settings import TuneSettings
from herd.train.sources import Made
from herd.types import Batch


@settings
class RlSettings(TuneSettings):
    """Learn from verifiable rewards."""

    may_change: ClassVar[tuple[str, ...]] = ("recompute", "compile", "stop_if_gamed")

    prompts: Path | None = None
    """What is asked: JSONL or Parquet rows with `messages` or `prompt`, and what the reward reads; an environment of
    `verifiers` brings its own."""
    reward: str = "answer"
    """`answer` (the row's `answer`, by `scorer`), `checks` (share of IFEval's checks in the row), `all_checks`, `tests`
    (the row's unit tests, in the sandbox), a Python file (`my/reward.py`), or `verifiers:NAME`, a task set."""
    scorer: str = "number"
    """How `answer` compares: a scorer of `herd evaluate` (number, exact, exact_words, mathematics, letter ...)."""
    second: str = "sound"
    """A second verifier, from which nothing is learned, that looks at rewarded answers: `sound` (words, no mere
    repetition, no copy of the question), or any that `reward` may name."""
    stop_if_gamed: bool = True
    """Stop where the second verifier refuses clearly more of the rewarded answers than at the start; else say so."""
    algorithm: Literal["grpo", "rloo"] = "grpo"
    """Whether an answer is held against its group's mean (GRPO) or against the mean of the others (RLOO)."""
    scale: bool = True
    """Divide GRPO's advantages by the group's deviation."""
    normalise: Normalise = "token"
    """What a step's loss is the mean of: tokens (DAPO), answers by their token mean (`answer`, GRPO), or answers by
    their sum over answer_tokens (`length`, Dr. GRPO)."""
    clip_low: float = 0.2
    """How far below 1 the ratio to the policy that sampled counts."""
    clip_high: float = 0.28
    """How far above 1."""
    kl: float = 0.0
    """Weight of the KL divergence to the model that training starts from; above 0 that model is held in memory too."""
    shorter: float = 0.0
    """Largest bonus of a right answer that is shorter than its group's right answers."""
    gate: bool = True
    """Give the bonus to right answers only, and only where not all of a group are equally right."""
    cut_is_wrong: bool = True
    """An answer that runs into answer_tokens has the reward 0."""
    steps: int = 100
    """Optimizer steps."""
    prompts_per_step: int = 8
    """Prompts that are answered for a step."""
    samples: int = 8
    """Answers to each prompt: its group."""
    updates: int = 1
    """Optimizer steps on each drawing of answers, each on its part of them."""
    answer_tokens: int = 128
    """Longest answer of a turn, in tokens."""
    turns: int = 4
    """Answers in one conversation at most, where the reward's file has a `reply`."""
    max_prompts: int = 100_000
    """Prompts that are used, spread evenly over the file."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: a prompt that stands in one of them is left out."""
    sandbox: str = "full"
    """Level of the sandbox in which tests run (docs/sandbox.md)."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """What it is judged by while it learns."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=512))
    """Row length (prompt and answer must fit) and `micro_tokens`; how many tokens a step has the answers decide."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-6))
    """AdamW."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(shape="constant"))
    """Learning rate over the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward.startswith(PREFIX) != (self.prompts is None):
            raise ValueError("give `prompts`; an environment of verifiers brings its own prompts, and takes no others")
        if self.samples < 2 or min(self.steps, self.prompts_per_step, self.answer_tokens, self.turns) < 1:
            raise ValueError("samples must be at least 2; steps, prompts_per_step, answer_tokens and turns at least 1")
        if not 1 <= self.updates <= self.samples or self.steps % self.updates:
            raise ValueError("updates must lie between 1 and `samples` and divide `steps`")
        if self.epochs != 1.0:
            raise ValueError("epochs is not for rl, which goes by `steps`")
        if not 0 < self.clip_low < 1 or self.clip_high <= 0 or self.kl < 0:
            raise ValueError("clip_low must lie between 0 and 1, clip_high above 0, kl must be 0 or more")
        if not 0 <= self.shorter <= 1:
            raise ValueError("shorter must lie between 0 and 1: a bonus is less than being right")


def run(settings: RlSettings) -> Path:
    """Train, and write `checkpoint/`; what the model wrote in each step lies in `rollouts/`."""
    file = settings.reward.partition(".py:")[0].removesuffix(".py") + ".py"
    inputs: dict[str, Path | list[Path] | None] = {
        "prompts": settings.prompts,
        "checkpoint": settings.checkpoint,
        "benchmarks": [*settings.benchmarks],
        "reward": Path(file) if ".py" in settings.reward else None,
    }
    inputs |= watched_inputs(settings.watch)
    environment = Environment(settings.reward) if settings.reward.startswith(PREFIX) else None
    judge = Judge(environment.reward) if environment else open_reward(settings.reward, **_options(settings))
    second = open_reward(settings.second, **_options(settings))
    with training(settings, "rl", inputs) as job:
        if job.finished:
            return settings.out
        if num_processes() > 1:
            raise ConfigError("herd rl samples and learns in one process; start it without torchrun")
        start = job.start_from(settings.checkpoint)
        limits = Limits(settings.answer_tokens, settings.batch.row_tokens, settings.turns)
        rows = fitting(apart_from(_rows(settings, environment), settings.benchmarks), job.tokenizer, limits)
        plan = _plan(settings, limits)
        say(f"  {amount(len(rows))} prompts, {plan.prompts} of them x {plan.samples} answers a drawing")
        model = job.model
        assert isinstance(model, LlamaForCausalLM)
        reference = _reference(job, start) if settings.kl else None
        folder = job.run.path / "rollouts"
        folder.mkdir(exist_ok=True)
        make = Rollouts(model, job.tokenizer, rows, plan, judge, second.reward, folder, reference)
        source = _source(job, settings, make)
        job.train(_objective(settings), source, settings.steps, hooks=watched_by(job, settings.watch)(source))
        job.finish({"steps": settings.steps} | last_means(job.run.path, share=0.2))
    return settings.out


def _options(settings: RlSettings) -> dict[str, str]:
    return {"scorer": settings.scorer, "sandbox": settings.sandbox}


def _rows(settings: RlSettings, environment: Environment | None) -> list[dict]:
    if environment is not None:
        return environment.rows(settings.max_prompts)
    assert settings.prompts is not None  # as the settings were checked
    return read_prompts(settings.prompts, settings.max_prompts)


def _plan(settings: RlSettings, limits: Limits) -> Plan:
    names = ("samples", "updates", "algorithm", "scale", "normalise", "shorter", "gate", "cut_is_wrong", "seed")
    given = {name: getattr(settings, name) for name in (*names, "stop_if_gamed")}
    return Plan(prompts=settings.prompts_per_step, limits=limits, micro_tokens=settings.batch.micro_tokens, **given)


def _objective(settings: RlSettings) -> partial:
    low, high, kl = settings.clip_low, settings.clip_high, settings.kl
    return partial(policy_gradient, clip_low=low, clip_high=high, kl=kl, figures=FIGURES)


def _source(job: Job, settings: RlSettings, make: Rollouts) -> Made:
    answers = settings.prompts_per_step * settings.samples // settings.updates
    guess = answers * min(settings.batch.row_tokens, 2 * settings.answer_tokens)
    return Made(
        job.run.path / "state",
        (lambda step: make(step)[0]) if settings.updates == 1 else make,
        row_tokens=settings.batch.row_tokens,
        step_tokens=guess,
        varying=True,
        together=settings.updates,
        name="rollouts",
    )


def _reference(job: Job, start: Checkpoint) -> Reference:
    """Log-probabilities under the checkpoint that training starts from, held beside the policy."""
    model = start.load(dtype=job.dtype).to(job.device).eval()

    @torch.no_grad()
    def log_probs(batch: Batch) -> torch.Tensor:
        return model.run(label_log_probs, batch.to(job.device)).cpu()

    return log_probs
