from __future__ import annotations

import os

import pytest

from herd import sandbox
from herd.sandbox import cgroup

LIMITS = {"memory_bytes": 1000, "disk_bytes": 24, "num_processes": 7}
HYBRID = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"


def tree(folder, controllers):
    """A folder that looks like a cgroup with one below it, in which we are."""
    ours = folder / "user.scope" / "house"
    ours.mkdir(parents=True)
    for place in (ours, ours.parent):
        (place / "cgroup.procs").write_text("")
        (place / "cgroup.subtree_control").write_text("")
    (ours.parent / "cgroup.subtree_control").write_text(controllers)
    return f"cgroup2 {folder} cgroup2 rw 0 0\n", "0::/user.scope/house\n"


def test_the_cgroup_above_is_taken_where_it_hands_down_controllers(tmp_path):
    assert cgroup.parent(*tree(tmp_path, "cpu memory pids")) == (str(tmp_path / "user.scope"), None)


@pytest.mark.parametrize(
    ("controllers", "why"), [("cpu", "does not enable memory and pids"), ("memory", "does not enable pids")]
)
def test_what_is_lacking_is_named(controllers, why, tmp_path):
    found, said = cgroup.parent(*tree(tmp_path, controllers))
    assert found is None and why in said


def test_without_cgroup_v2_that_is_said():
    assert cgroup.parent(HYBRID, "4:memory:/x\n") == (None, "no cgroup v2 is mounted")


def test_a_group_has_the_limits_of_its_box_and_takes_processes(tmp_path):
    folder = tmp_path / f"herd-box-{os.getpid()}"
    folder.mkdir()
    for name in (
        "memory.max",
        "pids.max",
        "memory.swap.max",
        "memory.oom.group",
        "cgroup.procs",
        "cgroup.kill",
        "memory.events",
    ):
        (folder / name).write_text("")
    group = cgroup.Group(str(tmp_path), LIMITS)
    os.write(group.handles[0], b"0")
    read = {path.name: path.read_text().strip() for path in folder.iterdir()}
    assert (read["memory.max"], read["pids.max"], read["memory.swap.max"]) == ("1024", "7", "0")
    assert read["cgroup.procs"] == "0"
    (folder / "memory.events").write_text("low 0\noom_kill 0\n")
    assert not cgroup.killed_for_memory(group.handles[1])
    (folder / "memory.events").write_text("low 0\noom_kill 1\n")
    assert cgroup.killed_for_memory(group.handles[1])
    group.close()
    assert (folder / "cgroup.kill").read_text() == "1\n"


def test_a_group_that_cannot_limit_is_a_fault(tmp_path):
    with pytest.raises(FileNotFoundError, match="memory"):
        cgroup.Group(str(tmp_path), LIMITS)


def test_a_result_names_the_cgroup_exactly_where_it_is_used():
    there = sandbox.available()["cgroup"] is None
    assert ("cgroup" in sandbox.run("pass", level=sandbox.strongest()).layers) == there
