"""A model in training judged on a schedule: bits per byte, likelihood of right answers, needles."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import find_recipe, settings
from herd.data.shards import open_heldout
from herd.errors import ConfigError
from herd.evals import needle, perplexity
from herd.evals.asking import ask, main_metric
from herd.evals.subject import Local
from herd.evals.task import Task, items_of, load_task, missing, paths_of
from herd.infer.build import with_attention
from herd.infer.engine import Engine
from herd.log import say
from herd.model.llama import Llama, LlamaForCausalLM
from herd.ops.attention import packed_attention
from herd.parallel.model import ParallelModel
from herd.run import Run, atomic_write
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import is_first
from herd.train.hooks import Hook, at_shares, every
from herd.train.job import Job
from herd.train.sources import BatchSource

FILE = "evaluations.jsonl"


@settings
class WatchSettings:
    """What a model in training is judged by, and when."""

    tasks: list[Path] = field(default_factory=list)
    """Task files with `ask: choices` (how many right, nats of the right answer), `text` or `bits_per_byte` (by source),
    or `needle`."""
    steps: int = 0
    """Steps between judgements; 0: at `shares` instead."""
    shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    """Shares of the run (0 to 1) after which it is judged."""
    data: Path | None = None
    """Folder in which the tasks' data is looked for first."""
    limit: int = 50
    """At most so many questions of a task."""
    max_bytes: int = 30_000
    """Held-out text per source, in bytes."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.limit < 1 or self.max_bytes < 1 or not all(0 < share <= 1 for share in self.shares):
            raise ValueError("steps must be 0 or more, limit and max_bytes at least 1, shares above 0 and at most 1")


def watched_inputs(watch: WatchSettings) -> dict[str, Any]:
    """The tasks' files and what they read, for the run's inputs; nothing where there are no tasks."""
    if not watch.tasks:
        return {}
    data = [path for task in watched_tasks(watch) for path in paths_of(task)]
    return {"watched tasks": [find_recipe(file) for file in watch.tasks], "watched data": data}


def watched_tasks(watch: WatchSettings) -> list[Task]:
    """The tasks, their data found.

    Raises:
        ConfigError: one wants free answers, or its data is not there.
    """
    tasks = [load_task(file, watch.data, watch.limit) for file in map(find_recipe, watch.tasks)]
    for task in tasks:
        if task.ask in ("generate", "cache"):
            raise ConfigError(
                f"watch.tasks: {task.name} has `ask: {task.ask}`; use choices, text, bits_per_byte or needle"
            )
        if why := missing(task):
            raise ConfigError(f"watch.tasks: {why}")
    return [replace(task, max_bytes=min(task.max_bytes, watch.max_bytes)) for task in tasks]


def watched_by(job: Job, watch: WatchSettings) -> Callable[[BatchSource], list[Hook]]:
    """The hooks of a training job, once its source of batches is known; see `watcher`."""
    return lambda source: watcher(job.run, job.model, job.tokenizer, watch, tokens_before=source.tokens_before)


def watcher(
    run: Run,
    model: Llama | ParallelModel,
    tokenizer: Tokenizer,
    watch: WatchSettings,
    *,
    tokens_before: Callable[[int], int],
) -> list[Hook]:
    """Hooks that judge the model and keep a row for each step in `evaluations.jsonl`: step, tokens, figures by name.

    Raises:
        UserError: as `watched_tasks`, or a task's rows are not as it says.
    """
    if not (tasks := watched_tasks(watch)):
        return []
    asked = {task.name: items_of(task) for task in tasks if task.ask in ("choices", "text")}
    file = run.path / FILE

    def judge(step: int) -> None:
        if not is_first():
            return
        if isinstance(model, ParallelModel):
            say("  watch.tasks are passed over: no process holds the whole model to answer them")
            return
        assert isinstance(model, LlamaForCausalLM)
        subject = Local.around(Engine.of(model, tokenizer))
        figures: dict[str, float] = {}
        for task in tasks:
            figures |= _of_items(task, asked[task.name], subject) if task.name in asked else _of_text(task, subject)
        row = {"step": step, "tokens": tokens_before(step), "figures": figures}
        earlier = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [*(old for old in earlier if old["step"] < step), row]
        atomic_write(file, "".join(json.dumps(one) + "\n" for one in rows))
        say(f"\n  after step {step:,}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    return [every(watch.steps, judge) if watch.steps else at_shares(watch.shares, judge)]


def last_figures(folder: Path) -> dict[str, float]:
    """What a run was judged last, under names that a story's gate can ask; nothing where it was not judged."""
    file = folder / FILE
    rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found: dict[str, float] = json.loads(rows[-1])["figures"] if rows else {}
    return {re.sub(r"[^\w.-]+", "_", name): float(f"{value:.6g}") for name, value in found.items()}


def _of_items(task: Task, items: list[Any], subject: Local) -> dict[str, float]:
    pairs = list(zip(items, ask(task, items, subject, base=True), strict=True))
    kept = [(item, one) for item, one in pairs if "left_out" not in one]
    if not kept:
        return {}
    metric = main_metric(task)
    if task.ask == "text":
        total = sum(one["weight"] for _, one in kept)
        return {f"{task.name} {metric}": sum(one["scores"][metric] * one["weight"] for _, one in kept) / total}
    right = [-one["nats"][item.best] for item, one in kept]
    by_character = [nats / max(1, len(item.choices[item.best])) for nats, (item, _) in zip(right, kept, strict=True)]
    accuracy = sum(one["scores"][metric] for _, one in kept) / len(kept)
    return {
        f"{task.name} {metric}": accuracy,
        f"{task.name} right_nats": sum(right) / len(right),
        f"{task.name} right_nats_per_character": sum(by_character) / len(kept),
    }


def _of_text(task: Task, subject: Local) -> dict[str, float]:
    """Bits per byte of each held-out source, or the needle's two shares; nothing where nothing was held out."""
    heldout = open_heldout(task.data)
    model = with_attention(subject.engine.model, packed_attention)
    context = task.context_tokens or model.config.max_position_embeddings
    if task.ask == "bits_per_byte":
        coded = perplexity.heldout_lengths(model, heldout, context, task.max_bytes)
        apart = {f"{task.name} {source} bits_per_byte": one.bits_per_byte for source, one in coded.items()}
        return apart | {f"{task.name} bits_per_byte": perplexity.together(coded.values())}
    if not heldout:
        return {}
    largest = max(heldout.values(), key=lambda documents: int(documents.num_tokens.sum()))
    haystack = np.concatenate([largest.tokens(index)[1:-1] for index in range(len(largest))])
    lengths = [one for one in task.lengths or needle.grid_lengths(context) if one <= min(context, len(haystack))]
    if not lengths:
        return {}
    ask_model = needle.model_next_logits(model)
    grid = needle.needle_grid(ask_model, subject.engine.tokenizer, haystack, lengths=lengths, trials=task.trials)
    shares = {"copied": float(grid.copied.mean()), "chosen": float(grid.chosen.mean())}
    return {f"{task.name} {name}": value for name, value in shares.items() if not math.isnan(value)}
