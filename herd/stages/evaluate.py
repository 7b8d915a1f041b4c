"""Evaluate: models side by side on tasks, which are files; every figure with its interval."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from herd.config import find_recipe, settings
from herd.data.rows import write_rows
from herd.errors import ConfigError, DataError
from herd.evals.asking import Result, ask, baseline_results, samples_of, scores_of
from herd.evals.subject import address_of, named, open_subject
from herd.evals.table import decision, headlines, is_part, show_table
from herd.evals.task import Item, Task, items_of, load_task, missing, paths_of
from herd.evals.text import judge_needles, judge_text
from herd.log import progress, say
from herd.run import Run, atomic_write, open_run
from herd.types import Score

CHUNK_ITEMS = 384
"""Questions that are asked and kept together; each chunk has a fresh engine, so that stopping changes no answer."""


@settings
class EvaluateSettings:
    """Judge checkpoints, GGUF files and endpoints on tasks."""

    out: Path
    """Run folder to write."""
    tasks: list[Path]
    """Task files (YAML; see recipes/evals/), in the order of the tables."""
    path: list[Path] = field(default_factory=list)
    """Models: checkpoints, run folders, GGUF files, or addresses of OpenAI-compatible endpoints (http://HOST/v1)."""
    models: dict[str, Path] = field(default_factory=dict)
    """The same by the names they get in the tables."""
    data: Path | None = None
    """Folder in which the tasks' data is looked for first; default: beside each task's file."""
    limit: int | None = None
    """At most so many questions of a task."""
    text_models: list[str] | None = None
    """Models that are asked for bits per byte and needles; default: all."""
    base_models: list[str] | None = None
    """Models that continue raw text; default: those that were not trained on conversations."""
    compare: Literal["first", "previous"] = "first"
    """Whether each model is compared with the first, or with the one before it."""

    def __post_init__(self):
        if not self.tasks:
            raise ValueError("tasks: name at least one task file")
        asked = {*(self.text_models or ()), *(self.base_models or ())}
        if asked and (unknown := asked - set(named(self.models, self.path))):
            raise ValueError(f"text_models and base_models may only name models; {min(unknown)} is not one of them")
        if self.limit is not None and self.limit < 1:
            raise ValueError("limit must be at least 1")


def run(settings: EvaluateSettings) -> Path:
    """Write `scores.jsonl`, `samples.jsonl` and perhaps `needle.json`, and show the scores as tables."""
    models = named(settings.models, settings.path)
    tasks = [load_task(find_recipe(file), settings.data, settings.limit) for file in settings.tasks]
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError(f"tasks: two have the same name among {', '.join(task.name for task in tasks)}")
    for why in filter(None, map(missing, tasks)):
        say(f"  skipped: {why}")
    tasks = [task for task in tasks if not missing(task)]
    if not tasks:
        raise DataError("no task has its data here; give its folder as data=FOLDER")
    inputs: dict[str, Any] = {f"model {name}": path for name, path in models.items() if not address_of(path)}
    for task in tasks:
        inputs[f"task {task.name}"] = paths_of(task)
    inputs["tasks"] = [find_recipe(file) for file in settings.tasks]
    with open_run(settings.out, stage="evaluate", settings=settings, inputs=inputs) as run:
        if not run.finished:
            run.need(disk_bytes=20e6)
            _judge(run, settings, models, tasks)
    return run.path


def _judge(run: Run, settings: EvaluateSettings, models: dict[str, Path], tasks: list[Task]) -> None:
    scores: list[Score] = []
    samples: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    of_text: list[Score] = []  # the manifest tells them of the first model, which was made for text
    text_models = {name: models[name] for name in settings.text_models or models}
    for task in tasks:
        keep = partial(_kept, run, task)
        if task.ask == "bits_per_byte":
            new = judge_text(task, text_models, keep)
        elif task.ask == "needle":
            new, grids = judge_needles(task, text_models, keep)
            if grids:
                atomic_write(run.path / "needle.json", json.dumps(grids))
        else:
            items = items_of(task)
            results = {name: _answers(settings, task, items, name, path, keep) for name, path in models.items()}
            results |= baseline_results(task, items)
            new = scores_of(task, items, results)
            samples += samples_of(task, items, results)
            figures = figures or decision(task, items, results, list(models), settings.compare == "previous")
        scores += new
        of_text += new if task.ask in ("bits_per_byte", "needle") else []
        show_table(task.name, [score for score in new if not is_part(score, [task.name])])
    if figures:
        say(f"  {figures['verdict']}")
        write_rows(run.path / "samples.jsonl", samples)
    write_rows(run.path / "scores.jsonl", map(asdict, scores))
    whole = [score for score in scores if not is_part(score, [task.name for task in tasks])]
    of_best = headlines(whole, figures.get("best", next(iter(models))))
    run.finish(of_best | headlines(of_text, next(iter(text_models))) | figures)


def _answers(
    settings: EvaluateSettings,
    task: Task,
    items: list[Item],
    name: str,
    path: Path,
    keep: Callable[[str, Callable[[], Any]], Any],
) -> list[Result]:
    """A model's results, in chunks that an interrupted run does not ask again."""
    base = None if settings.base_models is None else name in settings.base_models
    results: list[Result] = []
    with progress(f"{task.name}, {name}", total=len(items), unit="questions") as bar:
        for start in range(0, len(items), CHUNK_ITEMS):
            part = items[start : start + CHUNK_ITEMS]
            results += keep(f"{name} {start}", partial(_asked, task, part, path, base))
            bar.advance(len(part))
    return results


def _asked(task: Task, items: list[Item], path: Path, base: bool | None) -> list[Result]:
    return ask(task, items, open_subject(path), base)


def _kept(run: Run, task: Task, name: str, make: Callable[[], Any]) -> Any:
    """A part of the work: read back where an interrupted run had finished it, else made and kept."""
    key = blake2b(f"{task.name}\0{name}".encode(), digest_size=8).hexdigest()
    file = run.path / "state" / f"{key}.json"
    if not file.exists():
        atomic_write(file, json.dumps(make()))
        gc.collect()  # a model's caches, before the next one is loaded
    return json.loads(file.read_text(encoding="utf-8"))
