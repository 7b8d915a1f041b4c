"""Mapping a pure function over parts with Daft: over processes of this machine, or over a Ray cluster.

On one machine Daft's threads hand the parts to processes that stay from map to map (`workers.py`); Daft's own are
started anew for each map, which takes two seconds.

A task takes and gives plain JSON values and works on files, so that where it runs does not matter; on a cluster the
run folder must lie where every machine sees it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

os.environ.setdefault("DO_NOT_TRACK", "1")  # before Daft is imported: no telemetry
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # what a person sees is the line of `map_parts`
os.environ.setdefault("DAFT_SHOW_QUERY_ID", "0")

import daft

from herd.curate.workers import Task, outcome_of, result_of, workers
from herd.errors import ConfigError
from herd.log import progress

Engine = Literal["native", "ray"]


def map_parts(
    task: Task,
    jobs: list[dict],
    processes: int | None,
    label: str,
    engine: Engine = "native",
    address: str | None = None,
) -> Iterator[dict]:
    """Run a pure function over jobs; results come in as they are ready. `processes` None takes every core there is.

    A single job, or a single process, needs no runner and stays in this process; on Ray nothing does.

    Raises:
        UserError, OSError: what a task raised, wherever it ran.
    """
    if not jobs:
        return
    if engine == "ray":
        results = _map_with_daft(task, jobs, min(_ray_processes(processes, address), len(jobs)), on_ray=True)
    else:
        processes = min(processes or os.cpu_count() or 1, len(jobs))
        results = map(task, jobs) if processes == 1 else _map_with_daft(task, jobs, processes, on_ray=False)
    with progress(label, total=len(jobs), unit="parts") as bar:
        for result in results:
            bar.advance()
            yield result


def _map_with_daft(task: Task, jobs: list[dict], processes: int, on_ray: bool) -> Iterator[dict]:
    frame = daft.from_pydict({"job": [json.dumps(job) for job in jobs]})
    if on_ray:
        frame = frame.into_partitions(min(len(jobs), 4 * processes))
    run = _on_ray(task, processes) if on_ray else _on_this_machine(task, processes)
    for row in frame.select(run(daft.col("job")).alias("result")).iter_rows():
        yield result_of(json.loads(row["result"]))


def _on_this_machine(task: Task, processes: int) -> Callable:
    """Daft awaits `processes` jobs at once, or one more; threads pass them on to workers."""

    @daft.func.batch(return_dtype=daft.DataType.string(), batch_size=1, use_process=False, max_concurrency=processes)
    async def run(jobs: daft.Series) -> list[str]:
        return [await asyncio.to_thread(workers().run, task, job, processes) for job in jobs.to_pylist()]

    return run


def _on_ray(task: Task, processes: int) -> Callable:
    @daft.cls(use_process=False, max_concurrency=processes)
    class Worker:
        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        def run(self, jobs: daft.Series) -> list[str]:
            return [json.dumps(outcome_of(task, json.loads(job))) for job in jobs.to_pylist()]

    return Worker().run


def _ray_processes(processes: int | None, address: str | None) -> int:
    cores = _ray(address)
    return processes or cores


def _ray(address: str | None) -> int:
    """Make Daft use a Ray cluster from now on in this process: at `address`, or one started here. Returns its cores.

    Raises:
        ConfigError: the `ray` extra is not installed, the cluster cannot be reached, or Daft already runs otherwise.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        import ray
    except ImportError:
        raise ConfigError("work.engine: `ray` needs the package: pip install ray") from None
    try:
        if not ray.is_initialized():
            environment = {"env_vars": {"DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}}
            local: dict[str, Any] = {} if address else {"include_dashboard": False}
            ray.init(address=address, runtime_env=environment, log_to_driver=False, **local)
        if daft.get_or_infer_runner_type() != "ray":
            daft.set_runner_ray(address)
        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    except Exception as error:  # Ray and Daft raise many kinds
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"work.address: no Ray cluster at {address or 'this machine'}: {reason}") from None
