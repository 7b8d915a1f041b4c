"""`run(code, language, files, limits) -> Result`: the way in for whoever has code that a model wrote."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any

from herd.errors import ConfigError, SandboxError
from herd.sandbox import frames, languages, levels

_WARDEN = "import sys; sys.path.insert(0, sys.argv[1]); from herd.sandbox.warden import main; main()"


@dataclass(frozen=True)
class Limits:
    """What one run may use, all its processes together where nothing else is said."""

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20
    output_bytes: int = 1 << 20  # each of stdout and stderr
    returned_bytes: int = 16 << 20  # files that come back
    num_processes: int = 64
    open_files: int = 256  # each process


@dataclass(frozen=True)
class Result:
    """What a run gave: `why` is `ended`, `time`, `cpu`, `memory`, `output` (cut at its limit) or `signal NAME`."""

    stdout: str
    stderr: str
    status: int
    why: str
    seconds: float
    files: dict[str, bytes]
    left_out: dict[str, str]
    level: str
    layers: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with status 0."""
        return self.why == "ended" and self.status == 0


class Sandbox:
    """A place to run code at a level; one run at a time (see `Pool` for many).

    Raises:
        SandboxError: the level is not to be had here and `allow_weaker` was not said.
    """

    def __init__(self, level: str = "full", *, allow_weaker: bool = False):
        self.level = checked_level(level, allow_weaker)
        self._scratch = tempfile.mkdtemp(prefix="herd-box-")
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-I", "-S", "-c", _WARDEN, root]
        with theirs:
            self._warden = subprocess.Popen(command, stdin=theirs.fileno(), env={}, cwd="/")
        self._channel = ours

    def run(
        self, code: str, language: str = "python", files: dict[str, bytes] | None = None, limits: Limits | None = None
    ) -> Result:
        """Run `code` in an empty folder with `files` beside it; nothing of the run outlives it but the result.

        Raises:
            ConfigError: an unknown language, one whose programs are not here, or a file's name that leads elsewhere.
            SandboxError: the box could not be put up.
        """
        known = languages.LANGUAGES.get(language)
        if known is None:
            raise ConfigError(f"no language `{language}`; there are: {', '.join(languages.LANGUAGES)}")
        if absent := languages.missing(language):
            raise ConfigError(f"{language} needs {', '.join(absent)}, not found on the PATH; install it")
        given = {_plain(name): data for name, data in (files or {}).items()} | {known.file: code.encode()}
        job: dict[str, Any] = {
            "level": self.level,
            "limits": asdict(limits or Limits()),
            "steps": languages.steps(language),
            "visible": languages.visible(language),
            "masked": [sysconfig.get_path("purelib", vars={"base": sys.base_prefix})],
            "reserves_memory": known.reserves_memory,
            "files": {name: base64.b64encode(data).decode() for name, data in given.items()},
            "environment": {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
            "scratch": self._scratch,
        }
        if "namespaces" not in levels.LAYERS[self.level]:
            job["scratch"] = tempfile.mkdtemp(dir=self._scratch)
        try:
            frames.send(self._channel, job)
            answer = frames.receive(self._channel)
        except OSError as error:
            raise SandboxError(f"the sandbox's own process is gone ({error}); open a new one") from None
        finally:
            if job["scratch"] != self._scratch:
                shutil.rmtree(job["scratch"], ignore_errors=True)
        return self._result(answer)

    def _result(self, answer: dict[str, Any] | None) -> Result:
        if answer is None or "fault" in answer:
            said = answer["fault"] if answer else "its process ended"
            raise SandboxError(f"the box of level `{self.level}` could not be put up: {said}")
        answer["files"] = {name: base64.b64decode(data) for name, data in answer["files"].items()}
        return Result(**answer, level=self.level, layers=levels.LAYERS[self.level])

    def close(self) -> None:
        """End the sandbox's process and whatever it runs."""
        self._channel.close()
        self._warden.kill()
        self._warden.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pool:
    """As many sandboxes as there are cores (or `workers`), for thousands of short runs."""

    def __init__(self, workers: int | None = None, level: str = "full", *, allow_weaker: bool = False):
        num_workers = workers or len(os.sched_getaffinity(0))
        self._all = [Sandbox(level, allow_weaker=allow_weaker) for _ in range(num_workers)]
        self._free: SimpleQueue[Sandbox] = SimpleQueue()
        for one in self._all:
            self._free.put(one)
        self._threads = ThreadPoolExecutor(num_workers)

    def map(self, codes: Iterable[str], language: str = "python", limits: Limits | None = None) -> Iterator[Result]:
        """The results in the order of the codes."""
        return self._threads.map(lambda code: self._one(code, language, limits), codes)

    def _one(self, code: str, language: str, limits: Limits | None) -> Result:
        sandbox = self._free.get()
        try:
            return sandbox.run(code, language, limits=limits)
        finally:
            self._free.put(sandbox)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for one in self._all:
            with contextlib.suppress(OSError):
                one.close()


def run(
    code: str,
    language: str = "python",
    files: dict[str, bytes] | None = None,
    limits: Limits | None = None,
    *,
    level: str = "full",
    allow_weaker: bool = False,
) -> Result:
    """Run one piece of code in a sandbox of its own."""
    with Sandbox(level, allow_weaker=allow_weaker) as sandbox:
        return sandbox.run(code, language, files, limits)


def checked_level(level: str, allow_weaker: bool) -> str:
    """The level to run at: the one asked for, or the strongest below it where that was allowed in words."""
    if level not in levels.LEVELS:
        raise ConfigError(f"no level `{level}`; there are, from the strongest: {', '.join(levels.LEVELS)}")
    there = levels.available()
    lacking = {name: there[name] for name in levels.LAYERS[level] if there[name] is not None}
    if not lacking:
        return level
    strongest = levels.strongest()
    if allow_weaker and levels.LEVELS.index(strongest) >= levels.LEVELS.index(level):
        return strongest
    reasons = "; ".join(f"{name}: {why}" for name, why in lacking.items())
    raise SandboxError(
        f"the sandbox's level `{level}` is not to be had here ({reasons}); the strongest here is `{strongest}`. "
        f"Ask for it with level={strongest}, or say allow_weaker=true; docs/sandbox.md says what each one stops"
    )


def _plain(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or path.parts[0] == ".tmp" or "\0" in name:
        raise ConfigError(f"{name!r}: expected a file's name inside the box, such as `data/in.csv`")
    return str(path)
