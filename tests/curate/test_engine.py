"""Where parts are worked on changes nothing about what comes out."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from herd.curate.engine import map_parts
from herd.curate.pipeline import Work
from herd.curate.workers import Workers, result_of
from herd.errors import ConfigError, DataError, UserError
from tests.curate.test_pipeline import crawl, curated  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]
ON_RAY = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from herd.curate.pipeline import Work
from tests.curate.test_pipeline import curated
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
crawl, out = Path(sys.argv[1]), Path(sys.argv[2])
for part_bytes in (12_000, 40_000):
    curated(crawl, out / str(part_bytes), work=Work(part_bytes=part_bytes, engine="ray", address=cluster.address))
assert len(ray.nodes()) == 2
"""


def summary(out):
    """The rows' content hash, sorted by id, and the funnel's counts."""
    rows = sorted(pq.read_table(out / "documents").to_pylist(), key=lambda row: (row["id"], row["url"]))
    steps = json.loads((out / "funnel.json").read_text())["steps"]
    names = ("name", "documents_in", "documents_out", "bytes_in", "bytes_out", "reasons", "notes")
    counts = [{name: step[name] for name in names} for step in steps]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest(), counts


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same_rows_for_any_cut(crawl, tmp_path):  # noqa: F811
    pytest.importorskip("ray")
    curated(crawl, tmp_path / "native", work=Work(part_bytes=12_000, processes=1))
    (tmp_path / "ray").mkdir()
    command = [sys.executable, "-c", ON_RAY, str(crawl), str(tmp_path / "ray")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for part_bytes in (12_000, 40_000):
        assert summary(tmp_path / "ray" / str(part_bytes)) == summary(tmp_path / "native")


def fail(job):
    if job["kind"] == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
    if job["kind"] == "bad":
        raise DataError("what is wrong, and where")
    return job


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_come_back_as_what_they_were(processes):
    with pytest.raises(OSError, match="No space left on device") as caught:
        list(map_parts(fail, [{"kind": "fine"}, {"kind": "full"}], processes, "test"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "somewhere")


def test_a_users_error_comes_back_with_its_words():
    with pytest.raises(DataError, match="what is wrong, and where"):
        list(map_parts(fail, [{"kind": "fine"}, {"kind": "bad"}], 1, "test"))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install ray"):
        list(map_parts(fail, [{"kind": "fine"}], None, "test", "ray"))


def pid(job):
    return {"pid": os.getpid()}


def end(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_stay_from_map_to_map():
    seen = {row["pid"] for _ in range(4) for row in map_parts(pid, [{}] * 8, 2, "test")}
    assert os.getpid() not in seen
    assert len(seen) <= 4  # another test may have left one or two; started anew they would be eight


def test_no_more_processes_work_than_were_asked_for():
    pool = Workers()
    with ThreadPoolExecutor(6) as threads:
        seen = list(threads.map(lambda _: result_of(json.loads(pool.run(pid, "{}", 2)))["pid"], range(30)))
    pool.close()
    assert len(seen) == 30
    assert len(set(seen)) <= 2


def end_parent(job):
    if os.getppid() != job["tester"]:  # where the system has no forks, the worker's parent is this process
        os.kill(os.getppid(), signal.SIGKILL)
    return {}


def test_the_process_that_workers_are_forks_of_may_be_killed_too():
    pool = Workers()
    pool.run(end_parent, json.dumps({"tester": os.getpid()}), 2)
    assert "ended (signal 9)" in pool.run(end, "{}", 2)
    assert result_of(json.loads(pool.run(pid, "{}", 2)))["pid"] != os.getpid()
    pool.close()


def test_a_process_that_was_killed_is_told_and_replaced():
    with pytest.raises(UserError, match=r"ended \(signal 9\).*work\.processes"):
        list(map_parts(end, [{}, {}], 2, "test"))
    assert len(list(map_parts(pid, [{}, {}], 2, "test"))) == 2


def test_no_process_outlives_the_run_that_started_it():
    run = (
        "import os, signal\n"
        "from herd.curate.engine import map_parts\n"
        "from tests.curate.test_engine import pid\n"
        "print(next(map_parts(pid, [{}, {}], 2, 'test'))['pid'], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = int(done.stdout.split()[-1])
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {worker} is still there")


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
