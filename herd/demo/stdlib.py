"""The pages that every Python carries: its standard library rendered to HTML by `pydoc`, and its source files.

Modules are imported in child processes with a time limit, an empty environment (no display, no variables of the user)
and without network, because importing is running. The same Python gives the same pages.
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue

EXCLUDED = {
    "antigravity": "opens a web browser when imported",
    "this": "prints a poem when imported",
    "test": "the tests of Python itself",
    "tests": "tests of a package",
    "idle_test": "tests of an editor",
    "idlelib": "a graphical editor",
    "turtledemo": "graphical demonstrations",
    "lib2to3": "removed from newer Pythons, carries foreign grammars",
    "ensurepip": "carries a foreign package",
    "encodings": "tables of characters",
    "pydoc_data": "taken as one page per chapter instead",
    "pip": "not of the library",
    "setuptools": "not of the library",
    "__main__": "runs a program when imported",
    "posixpath": "documented as os.path",
    "ntpath": "documented as os.path",
    "posix": "documented as os",
    "nt": "documented as os",
    "tix": "repeats the methods of tkinter for a removed set of widgets",
    "xxlimited": "an example of C code",
    "xxlimited_35": "an example of C code",
    "xxsubtype": "an example of C code",
}
"""Names of modules and packages that are left out at any level, and why."""

_SOURCES_EXCLUDED = EXCLUDED.keys() - {"posixpath", "ntpath", "tix"}
_MAX_SOURCE_BYTES = 1_000_000
ENVIRONMENT = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "BROWSER": "true",
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",  # macOS: the child forks before it does anything else
}


def stdlib_folder() -> Path:
    """The folder of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def version() -> str:
    """`3.11`: the first part of the pages' URLs."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def module_names() -> list[str]:
    """Every public module of the standard library, submodules included, without importing any of them."""
    root = stdlib_folder()
    top = [name for name in sys.stdlib_module_names if not name.startswith("_") and name not in EXCLUDED]
    names = [*top, "os.path"]
    for name in top:
        names += _submodules(root / name, name)
    return sorted(names)


def _submodules(folder: Path, package: str) -> list[str]:
    if not (folder / "__init__.py").exists():
        return []
    names = []
    for item in folder.iterdir():
        name = item.name.removesuffix(".py")
        if name.startswith("_") or name in EXCLUDED or not name.isidentifier():
            continue
        if item.suffix == ".py":
            names.append(f"{package}.{name}")
        elif (item / "__init__.py").exists():
            names += [f"{package}.{name}", *_submodules(item, f"{package}.{name}")]
    return names


def topic_names() -> list[str]:
    """The chapters of the language reference that `pydoc` carries, as `topics.NAME`."""
    return [f"topics.{name}" for name in sorted(pydoc_data.topics.topics)]


def source_files(modules: Iterable[str] | None = None) -> list[Path]:
    """The library's Python files in order of path; with `modules`, only those of these top-level modules."""
    root = stdlib_folder()
    top = None if modules is None else {name.partition(".")[0] for name in modules}
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            n for n in folders if n.isidentifier() and n not in _SOURCES_EXCLUDED and n != "__pycache__"
        )
        for name in names:
            module = name.removesuffix(".py")
            file = Path(folder, name)
            if not name.endswith(".py") or module in _SOURCES_EXCLUDED or name.startswith("_sysconfigdata"):
                continue
            first = file.relative_to(root).parts[0].removesuffix(".py")
            if (top is None or first in top) and 0 < file.stat().st_size <= _MAX_SOURCE_BYTES:
                files.append(file)
    return sorted(files)


def render(
    names: list[str], folder: Path, *, seconds: float, processes: int, report: Callable[[str, str], None]
) -> None:
    """Render modules to `folder`/NAME.html in child processes; `report(name, error)` is called after each.

    `seconds` is the limit for one module. Each page is whole or absent, so that a killed run goes on with the rest.
    """
    folder = folder.resolve()
    shares = [names[i::processes] for i in range(processes)]
    children = [_start(share, folder, seconds) for share in shares if share]
    answers: SimpleQueue = SimpleQueue()
    readers = [threading.Thread(target=_pump, args=(child, answers), daemon=True) for child in children]
    for reader in readers:
        reader.start()
    try:
        left = set(names)
        while left and (any(reader.is_alive() for reader in readers) or not answers.empty()):
            try:
                answer = answers.get(timeout=0.5)
            except Empty:
                continue
            left.discard(answer["name"])
            report(answer["name"], answer["error"])
        for name in sorted(left):
            report(name, "the process that renders pages ended early")
    finally:
        for child in children:
            child.kill()
            child.wait()


def _start(names: list[str], folder: Path, seconds: float) -> subprocess.Popen:
    script = Path(__file__).with_name("pydoc_child.py")
    command = [sys.executable, "-s", "-S", "-B", "-P", str(script), str(folder), str(seconds), str(stdlib_folder())]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=folder
    )
    assert child.stdin is not None
    child.stdin.write("\n".join(names).encode())
    child.stdin.close()
    return child


def _pump(child: subprocess.Popen, answers: SimpleQueue) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        answers.put(json.loads(line))
