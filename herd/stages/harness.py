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
    """Judge a checkpoint by lm-evaluation-harness's tasks (extra `eval`), without a network."""

    out: Path
    """Run folder to write."""
    path: Path
    """Checkpoint, run folder, LoRA adapter (PEFT folder) or GGUF file."""
    base: Path | None = None
    """Of an adapter: the checkpoint it changes; default: what its adapter_config.json names."""
    cut: bool = False
    """Whether prompts beyond the context lose their beginning, as in the harness's own models; else it is an error."""
    tasks_folder: Path
    """Folder with the harness's task files (YAML), whose data are local files (`dataset_path: json`)."""
    tasks: list[str] = field(default_factory=list)
    """Their names; default: all in the folder."""
    limit: int | None = None
    """At most the first so many rows of a task."""
    shots: int | None = None
    """Solved examples; default: as each task says."""
    chat: bool = False
    """Whether prompts are put as conversations, in the checkpoint's own template."""


def run(settings: HarnessSettings) -> Path:
    """Write `results.json` and `samples.jsonl`, as the harness gives them."""
    if not settings.tasks_folder.is_dir():
        raise ConfigError(f"tasks_folder: {settings.tasks_folder} is no folder")
    model = open_adapter("path", settings.path, settings.base) if is_adapter(settings.path) else settings.path
    if settings.base and model is settings.path:
        raise ConfigError(f"base: {settings.path} is no adapter (it has no adapter_config.json)")
    of_model = [model.adapter, model.place] if isinstance(model, Adapted) else settings.path
    inputs: dict[str, Any] = {"model": of_model, "tasks": settings.tasks_folder}
    with open_run(settings.out, stage="harness", settings=settings, inputs=inputs) as run:
        if not run.finished:
            found = _evaluated(settings, model)
            atomic_write(run.path / "results.json", json.dumps(found["results"], indent=1, default=str))
            rows = [{"task": task} | row for task, own in found["samples"].items() for row in own]
            write_rows(run.path / "samples.jsonl", [json.loads(json.dumps(row, default=str)) for row in rows])
            run.finish(dict(_figures(found["results"])) | {"prompts_cut": found["prompts_cut"]})
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
            told = ", ".join(known) or "none"
            raise ConfigError(f"tasks: {settings.tasks_folder} has no {', '.join(sorted(missing))}; it has {told}")
        judged = models.HarnessModel(model, cut=settings.cut)
        found = harness.simple_evaluate(
            model=judged,
            tasks=settings.tasks or known,
            task_manager=manager,
            num_fewshot=settings.shots,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            bootstrap_iters=1000,
            verbosity="ERROR",
        )
    assert isinstance(found, dict)  # None is for other ranks only
    if judged.num_cut:
        say(f"  {judged.num_cut:,} prompts lost their beginning to fit into the context")
    return found | {"prompts_cut": judged.num_cut}


def _figures(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for task, figures in results.items():
        for name, value in figures.items():
            if isinstance(value, int | float) and "stderr" not in name and name not in ("sample_len",):
                error = figures.get(name.replace(",", "_stderr,"))
                told = f" +- {1.96 * error:.4f}" if isinstance(error, int | float) else ""
                say(f"  {task} {name.split(',')[0]}: {value:.4f}{told}")
                yield f"{task}_{name.split(',')[0]}", float(value)
