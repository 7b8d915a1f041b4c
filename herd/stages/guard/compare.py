"""Put guards and models side by side on the safety tasks: violation against false refusal, by category, as one page.

`herd guard compare runs/guard data=FOLDER models=[runs/refusals] out=runs/page`; models come from runs of
`herd evaluate suite=safety`. The prompts are the same every time; `limit=30` takes 30 of each task.
"""

from __future__ import annotations

from pathlib import Path

from herd.config import find_recipe, settings
from herd.data.rows import write_rows
from herd.errors import ConfigError, DataError
from herd.evals.task import load_task, missing
from herd.log import say
from herd.markup import read_markup
from herd.run import atomic_write, open_run
from herd.safety.compared import compared_page, of_evaluation, of_guard, side_of, totals
from herd.safety.opened import open_any_guard


@settings
class CompareSettings:
    """What stands side by side."""

    out: Path
    """Run folder to write."""
    path: list[Path]
    """Folders of guards."""
    data: Path
    """Folder that holds the tasks' data."""
    suite: Path = Path("evals/suites/safety.yaml")
    """YAML file with a list `tasks`."""
    limit: int | None = None
    """At most so many prompts of a task."""
    models: list[Path] | None = None
    """Run folders of `herd evaluate`, whose models stand beside the guards."""

    def __post_init__(self) -> None:
        if not self.path and not self.models:
            raise ValueError("path: name a guard, or models=RUN")


def run(settings: CompareSettings) -> Path:
    """Write `rates.jsonl` and `rates.html`.

    Raises:
        DataError: none of the tasks' data is there.
    """
    suite = find_recipe(settings.suite)
    listed = read_markup(suite)
    if not isinstance(listed, dict) or not isinstance(listed.get("tasks"), list):
        raise ConfigError(f"{suite}: expected a list `tasks`")
    files = [find_recipe(Path("evals") / f"{name}.yaml") for name in listed["tasks"]]
    tasks = [load_task(file, settings.data, settings.limit) for file in files]
    for task in tasks:
        if why := missing(task):
            say(f"  left out: {why}")
    tasks = [task for task in tasks if side_of(task) and not missing(task)]
    if not tasks:
        raise DataError(f"{settings.data}: holds the data of no task that counts violations or false refusals")
    inputs = {"guards": settings.path, "models": settings.models, "tasks": files}
    with open_run(settings.out, stage="guard compare", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        rows = [row for folder in settings.models or () for row in of_evaluation(folder)]
        for folder in settings.path:
            rows += of_guard(folder.name, open_any_guard(folder), tasks)
        write_rows(run.path / "rates.jsonl", rows)
        atomic_write(run.path / "rates.html", compared_page(rows))
        figures = {f"{one['who']} {one['side']}": one["value"] for one in totals(rows)}
        for name, value in figures.items():
            say(f"  {name.replace('_', ' ')}: {value:.1%}")
        run.finish(figures)
        say(f"{run.path}: the page is {run.path / 'rates.html'}")
    return run.path
