"""Evaluate: compare models on tasks (YAML files); every figure with its confidence interval."""

from __future__ import annotations

import difflib
import functools
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import yaml

from herd.config import find_recipe, settings
from herd.data.rows import write_rows
from herd.errors import ConfigError, DataError
from herd.evals.adapted import Adapted, is_adapter, open_adapter
from herd.evals.asking import LOWER, Result, answered, ask, baseline_results, main_metric, samples_of, scores_of
from herd.evals.contamination import contamination, overlaps, told
from herd.evals.page import page
from herd.evals.statistics import as_published
from herd.evals.subject import Model, Subject, address_of, named, open_subject
from herd.evals.table import (
    comparisons,
    decision,
    headlines,
    is_part,
    show_comparisons,
    show_left_out,
    show_table,
    show_usage,
)
from herd.evals.task import Item, Task, items_of, load_task, missing, paths_of
from herd.evals.text import judge_needles, judge_text
from herd.log import Progress, heartbeat, progress, say
from herd.markup import read_markup
from herd.run import Run, atomic_write, open_run
from herd.types import Score

CHUNK_ITEMS, CHUNK_ANSWERS = 384, 64
"""Questions asked and saved together (the second for free answers); caches are cleared between them, so that an
interruption changes no answer."""


@settings
class EvaluateSettings:
    """Evaluate checkpoints, GGUF files and endpoints on tasks."""

    out: Path
    """Run folder to write."""
    tasks: list[Path] = field(default_factory=list)
    """Task files (YAML; see recipes/evals/), in the order of the tables."""
    suite: str = ""
    """More tasks: the suite `base` or `instruct` (the paper's, recipes/evals/suites/), or a YAML file with a list
    `tasks`."""
    path: list[Path] = field(default_factory=list)
    """Models: checkpoints, run folders, LoRA adapters (PEFT folders), GGUF files, or addresses of OpenAI-compatible
    endpoints (http://HOST/v1)."""
    models: dict[str, Path] = field(default_factory=dict)
    """More models, by the names they get in the tables."""
    data: Path | None = None
    """Folder in which the tasks' data is looked for first; default: beside each task's file."""
    limit: int | None = None
    """Most questions of a task."""
    free_limit: int | None = None
    """Most questions of a task with free answers, which take longest; default: `limit`."""
    text_models: list[str] | None = None
    """Models evaluated for bits per byte and needles; default: all."""
    bases: dict[str, Path] = field(default_factory=dict)
    """Base checkpoints of LoRA adapters, by name; default: the one in their adapter_config.json."""
    base_models: list[str] | None = None
    """Models that continue raw text; default: those not trained on conversations."""
    sandbox: str = "full"
    """Level of the sandbox in which programs run (docs/sandbox.md)."""
    ngrams: Path | None = None
    """Index of the training corpus (`herd ngrams`), to measure the tasks' contamination."""
    prices: dict[str, list[float]] = field(default_factory=dict)
    """Prices of a million tokens read and of a million written, by model, for the costs."""
    compare: Literal["first", "previous"] = "first"
    """Compare each model with the first one, or with the one before it."""

    def __post_init__(self):
        if not self.tasks and not self.suite:
            raise ValueError("tasks: name at least one task file, or a suite")
        if any(len(pair) != 2 for pair in self.prices.values()):
            raise ValueError("prices: expected two figures for each model, per million tokens read and written")
        asked = {*(self.text_models or ()), *(self.base_models or ()), *self.bases}
        if asked and (unknown := asked - set(named(self.models, self.path))):
            rule = "text_models, base_models and bases may only name models"
            raise ValueError(f"{rule}; {min(unknown)} is not one of them")
        if min(self.limit or 1, self.free_limit or 1) < 1 or 0 in (self.limit, self.free_limit):
            raise ValueError("limit and free_limit must be at least 1")


def run(settings: EvaluateSettings) -> Path:
    """Write `scores.jsonl`, `samples.jsonl`, `samples.html` and more, and print the scores as tables."""
    models = _models(settings)
    own, of_suite = [find_recipe(file) for file in settings.tasks], _of_suite(settings.suite)
    files = [*own, *map(find_recipe, of_suite)]
    _check_files(files)
    tasks = [_task(file, settings) for file in files]
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError(f"tasks: two have the same name among {', '.join(task.name for task in tasks)}")
    whys = {task.name: missing(task) for task in tasks} | _unanswerable(tasks[: len(own)], tasks[len(own) :], models)
    skipped = [{"task": name, "why": why} for name, why in whys.items() if why]
    for one in skipped:
        say(f"  skipped: {one['why']}")
    tasks = [task for task in tasks if not whys[task.name]]
    if not tasks:
        raise DataError("no task can be asked; give the folder of the data as data=FOLDER")
    items = {task.name: items_of(task) for task in tasks if task.ask not in ("bits_per_byte", "needle")}
    inputs: dict[str, Any] = {f"model {name}": _files(model) for name, model in models.items() if not address_of(model)}
    for task in tasks:
        inputs[f"task {task.name}"] = paths_of(task)
    inputs["tasks"] = files
    with open_run(settings.out, stage="evaluate", settings=settings, inputs=inputs) as run:
        if not run.finished:
            run.need(disk_bytes=20e6)
            write_rows(run.path / "skipped.jsonl", skipped)
            _judge(run, settings, models, tasks, items, [one["why"] for one in skipped])
    return run.path


def _task(file: Path, settings: EvaluateSettings) -> Task:
    task = replace(load_task(file, settings.data, settings.limit), sandbox=settings.sandbox)
    limits = [one for one in (task.limit, settings.free_limit) if one]
    return replace(task, limit=min(limits)) if limits and task.ask == "generate" else task


def _check_files(files: list[Path]) -> None:
    """Check that all task files exist.

    Raises:
        ConfigError: with all missing ones, and the nearest names of shipped tasks.
    """
    absent = [file for file in files if not file.is_file()]
    if absent:
        shipped = find_recipe(Path("evals"))
        known = {one.stem: one.relative_to(shipped.parent) for one in sorted(shipped.rglob("*.yaml"), reverse=True)}
        near = {file: difflib.get_close_matches(file.stem, known, 1, 0.7) for file in absent}
        names = [f"{file}" + "".join(f" (did you mean {known[one]}?)" for one in near[file]) for file in absent]
        raise ConfigError(f"tasks: not there: {', '.join(names)}; shipped ones lie in {shipped}")


def _unanswerable(own: list[Task], of_suite: list[Task], models: dict[str, Model]) -> dict[str, str]:
    """The tasks of a suite that are skipped because a model is an endpoint and they need its weights, with the reason.

    Raises:
        ConfigError: such a task was given by itself.
    """
    remote = [name for name, model in models.items() if address_of(model)]
    if not remote:
        return {}
    why = f"needs the weights (`ask: {{}}`), and {', '.join(remote)} answers `ask: generate` alone"
    if refused := [f"{task.name} {why.format(task.ask)}" for task in own if task.ask != "generate"]:
        raise ConfigError(f"tasks: {'; '.join(refused)}; name its checkpoint instead")
    return {task.name: f"{task.name} {why.format(task.ask)}" for task in of_suite if task.ask != "generate"}


def _models(settings: EvaluateSettings) -> dict[str, Model]:
    """All models by name; an adapter is opened over its base, which is printed.

    Raises:
        ConfigError: with all models that do not exist.
    """
    models: dict[str, Model] = {}
    given = named(settings.models, settings.path)
    if absent := [f"{name} ({path})" for name, path in given.items() if not address_of(path) and not path.exists()]:
        raise ConfigError(f"models: not there: {', '.join(absent)}")
    for name, path in given.items():
        models[name] = path
        if is_adapter(path):
            models[name] = adapted = open_adapter(name, path, settings.bases.get(name))
            say(f"  {name}: a LoRA adapter, added to {adapted.place}")
        elif name in settings.bases:
            raise ConfigError(f"bases.{name}: {path} is no adapter (it has no adapter_config.json)")
    return models


def _files(model: Model) -> Path | list[Path]:
    return [model.adapter, model.place] if isinstance(model, Adapted) else Path(str(model))


def _of_suite(name: str) -> list[Path]:
    """The tasks of a suite: a shipped one by name, or a file; its tasks are beside it or among the recipes."""
    if not name:
        return []
    file = find_recipe(Path(name if name.endswith((".yaml", ".yml")) else f"evals/suites/{name}.yaml"))
    try:
        suite = read_markup(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        shipped = sorted(one.stem for one in find_recipe(Path("evals/suites")).glob("*.yaml"))
        hint = f"there are {', '.join(shipped)}, or your own file"
        raise ConfigError(f"suite: {name} is none ({error}); {hint}") from None
    names = suite.get("tasks") if isinstance(suite, dict) and set(suite) == {"tasks"} else None
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise ConfigError(f"{file}: expected `tasks:` with a list of task files, and nothing else")
    with_ends = [one if one.endswith((".yaml", ".yml")) else f"{one}.yaml" for one in names]
    return [file.parent / one if (file.parent / one).exists() else _shipped(one) for one in with_ends]


def _shipped(name: str) -> Path:
    among = find_recipe(Path("evals") / name)
    return among if among.exists() else Path(name)


def _judge(
    run: Run,
    settings: EvaluateSettings,
    models: dict[str, Model],
    tasks: list[Task],
    items: dict[str, list[Item]],
    skipped: list[str],
) -> None:
    scores: list[Score] = []
    samples: list[dict[str, Any]] = []
    usage: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    differences: list[dict[str, Any]] = []
    contaminated: list[dict[str, Any]] = []
    of_text: list[Score] = []  # the manifest has those of the first text model
    text_models = {name: models[name] for name in settings.text_models or models}
    answers: dict[tuple[str, str], list[Result]] = {}
    for name, path in models.items():  # each is opened once
        opened = functools.cache(functools.partial(open_subject, path, run.path / "state" / "answers"))
        for task in tasks:
            if task.name in items:
                found, used = _answers(run, settings, task, items[task.name], name, opened)
                answers[task.name, name] = found
                num_asked = sum("left_out" not in one for one in found)
                usage.append({"task": task.name, "model": name, "n": num_asked} | used)
        del opened
        gc.collect()
    for task in tasks:
        keep = partial(_kept, run, task)
        if task.ask == "bits_per_byte":
            new = judge_text(task, text_models, keep)
        elif task.ask == "needle":
            new, grids = judge_needles(task, text_models, keep)
            if grids:
                atomic_write(run.path / "needle.json", json.dumps(grids))
        else:
            asked = items[task.name]
            results = {name: answers[task.name, name] for name in models} | baseline_results(task, asked)
            new = scores_of(task, asked, results)
            samples += samples_of(task, asked, results)
            previous = settings.compare == "previous"
            figures = figures or decision(task, asked, results, list(models), previous)
            common = answered(results, list(models))
            if settings.ngrams is not None and common:
                overlap = overlaps(settings.ngrams, [asked[place] for place in common])
                known = contamination(overlap, _main_values(task, results, list(models), common))
                contaminated.append({"task": task.name} | known)
                say(f"  contamination, {told(task.name, known)}")
            differences += comparisons(task, asked, results, list(models), previous)
        scores += new
        of_text += new if task.ask in ("bits_per_byte", "needle") else []
        show_table(task.name, [score for score in new if not is_part(score, [task.name])], task.published or {})
        if task.name in items:
            show_left_out(task, items[task.name], {name: answers[task.name, name] for name in models})
    rows = [asdict(score) | {"paper_half": _paper_half(score)} for score in scores]
    if figures:
        say(f"  {figures['verdict']}")
        write_rows(run.path / "samples.jsonl", samples)
        if contaminated:
            write_rows(run.path / "contamination.jsonl", contaminated)
        write_rows(run.path / "comparisons.jsonl", show_comparisons(differences))
        usage = show_usage(usage, settings.prices)
        write_rows(run.path / "usage.jsonl", usage)
        published = {task.name: task.published or {} for task in tasks}
        text = page(rows, samples, differences, usage, published, list(models), skipped)
        atomic_write(run.path / "samples.html", text)
    write_rows(run.path / "scores.jsonl", rows)
    whole = [score for score in scores if not is_part(score, [task.name for task in tasks])]
    of_best = headlines(whole, figures.get("best", next(iter(models))))
    run.finish(of_best | headlines(of_text, next(iter(text_models))) | figures)


def _main_values(
    task: Task, results: dict[str, list[Result]], models: list[str], places: list[int]
) -> dict[str, list[float]]:
    """Each model's values of the main metric."""
    metric = main_metric(task)
    return {name: [results[name][place]["scores"][metric] for place in places] for name in models}


def _paper_half(score: Score) -> float | None:
    """Half the interval by the paper's formula, for means of figures from 0 to 1."""
    fits = score.n and 0 <= score.value <= 1 and score.metric not in (*LOWER, "gain_over_retrieved")
    return round(as_published(score.value, score.n), 4) if fits else None


def _answers(
    run: Run,
    settings: EvaluateSettings,
    task: Task,
    items: list[Item],
    name: str,
    opened: Callable[[], Subject],
) -> tuple[list[Result], dict[str, float]]:
    """A model's results and resource usage, in chunks that a resumed run does not repeat."""
    base = None if settings.base_models is None else name in settings.base_models
    results: list[Result] = []
    used: dict[str, float] = {}
    with progress(f"{task.name}, {name}", total=len(items), unit="questions") as bar:
        size = CHUNK_ANSWERS if task.ask == "generate" else CHUNK_ITEMS
        for start in range(0, len(items), size):
            part = items[start : start + size]
            answered = _kept(run, task, f"{name} {start}", partial(_asked, task, part, opened, base, bar))
            results += answered["results"]
            for key, value in answered["usage"].items():
                used[key] = used.get(key, 0) + value
            bar.advance(len(part))
    return results, used


def _asked(
    task: Task, items: list[Item], opened: Callable[[], Subject], base: bool | None, bar: Progress
) -> dict[str, Any]:
    subject = opened()
    subject.forget()
    before, begin = dict(subject.usage), time.perf_counter()
    with heartbeat(bar, lambda: {"answers open": getattr(subject, "num_open", 0)}):
        results = ask(task, items, subject, base)
    used = {key: value - before[key] for key, value in subject.usage.items()}
    return {"results": results, "usage": {"seconds": round(time.perf_counter() - begin, 2)} | used}


def _kept(run: Run, task: Task, name: str, make: Callable[[], Any]) -> Any:
    """A part of the work: read back if an interrupted run had finished it, else computed and saved."""
    key = blake2b(f"{task.name}\0{name}".encode(), digest_size=8).hexdigest()
    file = run.path / "state" / f"{key}.json"
    if not file.exists():
        atomic_write(file, json.dumps(make()))
        gc.collect()  # a model's caches, before the next one is loaded
    return json.loads(file.read_text(encoding="utf-8"))
