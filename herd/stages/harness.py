"""Harness: lm-evaluation-harness's own tasks over Herd's engine, from local files."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.rows import write_rows
from herd.errors import ConfigError
from herd.evals.adapted import Adapted, is_adapter, open_adapter
from herd.evals.subject import Model
from herd.log import say
from herd.run import atomic_write, open_run


@settings
class HarnessSettings:
    """Evaluate a checkpoint on lm-evaluation-harness's tasks (extra `eval`), offline."""

    out: Path
    """Run folder to write."""
    path: Path
    """Checkpoint, run folder, LoRA adapter (PEFT folder) or GGUF file."""
    base: Path | None = None
    """Base checkpoint of an adapter; default: the one in its adapter_config.json."""
    cut: bool = False
    """Whether prompts longer than the context are truncated at the start, as in the harness's own models; else they are
    an error."""
    tasks_folder: Path
    """Folder of the harness's task files (YAML), whose data are local files (`dataset_path: json`)."""
    tasks: list[str] = field(default_factory=list)
    """Names of the tasks; default: all in the folder."""
    limit: int | None = None
    """Take only the first rows of a task, at most this many."""
    shots: int | None = None
    """Number of few-shot examples; default: the task's own."""
    chat: bool = False
    """Whether prompts are formatted with the checkpoint's chat template."""


def run(settings: HarnessSettings) -> Path:
    """Write the harness's `results.json` and `samples.jsonl`."""
    if not settings.tasks_folder.is_dir():
        raise ConfigError(f"tasks_folder: {settings.tasks_folder} is not a folder")
    model = open_adapter("path", settings.path, settings.base) if is_adapter(settings.path) else settings.path
    if settings.base and model is settings.path:
        raise ConfigError(f"base: {settings.path} is not an adapter (it has no adapter_config.json)")
    of_model = [model.adapter, model.place] if isinstance(model, Adapted) else settings.path
    inputs: dict[str, Any] = {"model": of_model, "tasks": settings.tasks_folder}
    with open_run(settings.out, stage="harness", settings=settings, inputs=inputs) as run:
        if not run.finished:
            evaluated = _evaluated(settings, model)
            atomic_write(run.path / "results.json", json.dumps(evaluated["results"], indent=1, default=str))
            rows = [{"task": task} | row for task, own in evaluated["samples"].items() for row in own]
            write_rows(run.path / "samples.jsonl", [json.loads(json.dumps(row, default=str)) for row in rows])
            run.finish(dict(_figures(evaluated["results"])) | {"prompts_cut": evaluated["prompts_cut"]})
    return run.path


def _evaluated(settings: HarnessSettings, model: Model) -> dict[str, Any]:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")  # before the first import: nothing is fetched
    try:
        harness = importlib.import_module("lm_eval")
        managers = importlib.import_module("lm_eval.tasks")
        models = importlib.import_module("herd.evals.harness")
    except ImportError as error:
        raise ConfigError(f"the harness is not installed ({error}): pip install '.[eval]'") from None
    with contextlib.redirect_stdout(io.StringIO()):
        manager = managers.TaskManager(include_path=str(settings.tasks_folder), include_defaults=False)
        known = sorted(manager.all_tasks)
        if missing := set(settings.tasks) - set(known):
            available = ", ".join(known) or "none"
            raise ConfigError(f"tasks: {settings.tasks_folder} has no {', '.join(sorted(missing))}; it has {available}")
        judged = models.HarnessModel(model, cut=settings.cut)
        evaluated = harness.simple_evaluate(
            model=judged,
            tasks=settings.tasks or known,
            task_manager=manager,
            num_fewshot=settings.shots,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            bootstrap_iters=1000,
            verbosity="ERROR",
        )
    assert isinstance(evaluated, dict)  # None is for other ranks only
    if judged.num_cut:
        say(f"  {judged.num_cut:,} prompts were truncated at the start to fit into the context")
    return evaluated | {"prompts_cut": judged.num_cut}


def _figures(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for task, figures in results.items():
        for name, value in figures.items():
            if isinstance(value, int | float) and "stderr" not in name and name not in ("sample_len",):
                error = figures.get(name.replace(",", "_stderr,"))
                interval = f" +- {1.96 * error:.4f}" if isinstance(error, int | float) else ""
                say(f"  {task} {name.split(',')[0]}: {value:.4f}{interval}")
                yield f"{task}_{name.split(',')[0]}", float(value)
