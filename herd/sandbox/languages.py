"""The languages: the programs each needs, and the commands to build and run a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Language:
    """How code in one language is run; all of `programs` must be installed."""

    file: str
    programs: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    reserves_memory: bool = False


LANGUAGES = {
    "python": Language("main.py", (), ((sys.executable, "-s", "-B", "main.py"),)),
    "bash": Language("main.sh", ("bash",), (("bash", "main.sh"),)),
    "c": Language("main.c", ("gcc",), (("gcc", "-O1", "-o", "main", "main.c", "-lm"), ("./main",))),
    "c++": Language("main.cpp", ("g++",), (("g++", "-O1", "-o", "main", "main.cpp"), ("./main",))),
    "javascript": Language("main.js", ("node",), (("node", "main.js"),), True),
    "typescript": Language("main.ts", ("tsc", "node"), (("tsc", "main.ts"), ("node", "main.js")), True),
    "java": Language("Main.java", ("java", "javac"), (("javac", "Main.java"), ("java", "-Xmx256m", "Main")), True),
    "go": Language("main.go", ("go",), (("go", "build", "-o", "main", "main.go"), ("./main",)), True),
    "rust": Language("main.rs", ("rustc",), (("rustc", "-O", "-o", "main", "main.rs"), ("./main",)), True),
    "sql": Language("main.sql", ("sqlite3",), (("sqlite3", "-bail", ":memory:", ".read main.sql"),)),
}

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache",
    "/etc/java-17-openjdk", "/etc/fonts",
)  # fmt: skip


def missing(name: str) -> list[str]:
    """The programs that a language needs and that are not installed."""
    return [program for program in LANGUAGES[name].programs if _program(program) is None]


def steps(name: str, environment: str) -> list[list[str]]:
    """The commands of a language with full paths; Python is the one in `environment`."""
    commands = []
    for words in LANGUAGES[name].steps:
        first = f"{environment}/bin/python" if words[0] == sys.executable else words[0]
        commands.append([first if first.startswith((".", "/")) else _program(first) or first, *words[1:]])
    return commands


def visible(name: str) -> list[str]:
    """The system folders that code in a language may read."""
    prefixes = [sys.base_prefix] if name == "python" else []
    home = os.path.realpath(os.path.expanduser("~"))
    for program in LANGUAGES[name].programs:
        path = _program(program) or ""
        if not path.startswith("/usr/"):
            prefix = os.path.dirname(os.path.dirname(path))
            # In the user's home and ~/.local (beside keys) only the program itself is visible.
            whole = os.path.commonpath([prefix, home]) != prefix and prefix != f"{home}/.local"
            prefixes.append(prefix if whole else path)
    return [*_SYSTEM, *(prefix for prefix in prefixes if prefix not in ("/usr", "/", ""))]


@cache
def _program(name: str) -> str | None:
    path = shutil.which(name)
    if path and name == "rustc":  # rustup's is a wrapper for the real one in the user's home
        found = subprocess.run([path, "--print", "sysroot"], capture_output=True, text=True, check=False)
        path = f"{found.stdout.strip()}/bin/rustc" if found.returncode == 0 else path
    return os.path.realpath(path) if path else None
