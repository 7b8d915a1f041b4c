"""A stranger's file read in a process of its own, which is ended where it takes too much time or memory."""

from __future__ import annotations

import json
import subprocess
import sys

from herd.knowledge.sections import Problem, Section, read_sections

SECONDS = 60.0
MEMORY_BYTES = 3 << 30
_CHILD = "from herd.knowledge.apart import answer; answer()"


def read_apart(name: str, content: bytes, *, seconds: float = SECONDS) -> tuple[list[Section], Problem | None]:
    """The sections of a file, or why there are none, as `read_sections`; never takes longer than `seconds`."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(name).encode() + b"\n" + content,
            capture_output=True,
            timeout=seconds,
            check=True,
        )
        sections, problem = json.loads(run.stdout)
    except subprocess.TimeoutExpired:
        return [], ("too slow", f"took more than {seconds:.0f} s")
    except (subprocess.CalledProcessError, ValueError):
        return [], ("damaged", "reading it failed, or took too much memory")
    return [Section(*one) for one in sections], tuple(problem) if problem else None


def answer() -> None:
    """The process's side: a name and a file come in, sections go out."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on this system: the time is bounded all the same
        pass
    name = json.loads(sys.stdin.buffer.readline())
    found = read_sections(name, sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(found))
