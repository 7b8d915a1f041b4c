"""Limits on memory and processes by the kernel, if cgroup v2 is mounted and partly writable.

They complement the monitoring in `processes.py`: they include what it cannot see (kernel buffers, shared pages), and
apply immediately.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

_NEEDED = {"memory", "pids"}


def parent(mounts: str | None = None, own: str | None = None) -> tuple[str | None, str | None]:
    """The cgroup in which sandboxes may create theirs, or the reason why there is none.

    It is this process's or its parent: a cgroup with processes cannot enable controllers for its children, unless it is
    the root. `mounts` and `own` are the contents of /proc/self/mounts and /proc/self/cgroup.
    """
    try:
        mounts = Path("/proc/self/mounts").read_text() if mounts is None else mounts
        own = Path("/proc/self/cgroup").read_text() if own is None else own
    except OSError as error:
        return None, f"/proc shows no cgroup ({error.strerror})"
    tops = [words[1] for words in map(str.split, mounts.splitlines()) if words[2:3] == ["cgroup2"]]
    places = [line[3:] for line in own.splitlines() if line.startswith("0::")]
    if not tops or not places:
        return None, "no cgroup v2 is mounted"
    here = Path(tops[0], places[0].lstrip("/"))
    reasons = []
    for folder in (here, here.parent)[: 2 if here != Path(tops[0]) else 1]:
        with contextlib.suppress(OSError):
            lacking = _NEEDED - set((folder / "cgroup.subtree_control").read_text().split())
            if not lacking and all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs")):
                return str(folder), None
            reason = f"does not enable {' and '.join(sorted(lacking))}" if lacking else "is not writable"
            reasons.append(f"{folder} {reason}")
    return None, "; ".join(reasons) or f"{here} cannot be read"


def killed_for_memory(events: int) -> bool:
    """Whether the kernel's OOM killer has acted, from an open memory.events."""
    counts = dict(line.split() for line in os.pread(events, 4096, 0).decode().splitlines())
    return int(counts.get("oom_kill", 0)) > 0


class Group:
    """The cgroup of one box; processes join it through the first of `handles`, and `close` kills and removes all."""

    def __init__(self, folder: str, limits: dict[str, Any]):
        self._path = Path(folder, f"herd-box-{os.getpid()}")
        self._path.mkdir(exist_ok=True)
        # Files in the box's in-memory folder count too.
        self._set("memory.max", limits["memory_bytes"] + limits["disk_bytes"])
        self._set("pids.max", limits["num_processes"])
        for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
                self._set(name, value)
        procs = os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        self.handles = (procs, os.open(self._path / "memory.events", os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        """Kill the remaining processes and remove the cgroup."""
        for handle in self.handles:
            os.close(handle)
        with contextlib.suppress(OSError):
            self._set("cgroup.kill", 1)
        with contextlib.suppress(OSError):
            self._path.rmdir()

    def _set(self, name: str, value: int) -> None:
        path = self._path / name
        if not path.exists():
            raise FileNotFoundError(2, f"no {name} in the box's cgroup", str(path))
        path.write_text(f"{value}\n")
