"""`run(code, language, files, limits) -> Result`: the entry point for running model-written code."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import site
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any

from herd.errors import ConfigError, SandboxError
from herd.sandbox import cgroup, environment, languages, levels
from herd.sandbox.connection import Connection
from herd.sandbox.files import MAX_DEPTH
from herd.sandbox.packages import Packages, chosen

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}


_BOUNDS = {  # kind, minimum and maximum of each limit
    "wall_seconds": ("seconds", 0.001, 10**8),
    "cpu_seconds": ("seconds", 0.001, 10**8),
    "memory_bytes": ("a whole number", 1 << 20, 1 << 60),
    "disk_bytes": ("a whole number", 4096, 1 << 60),  # 0 would mean half of the memory
    "output_bytes": ("a whole number", 0, 1 << 60),
    "returned_bytes": ("a whole number", 0, 1 << 60),
    "num_processes": ("a whole number", 1, 1 << 30),
    "open_files": ("a whole number", 16, 1 << 30),
}


@dataclass(frozen=True)
class Limits:
    """Limits of one run, for all its processes together unless stated otherwise."""

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20
    output_bytes: int = 1 << 20  # for each of stdout and stderr
    returned_bytes: int = 16 << 20  # of returned files
    num_processes: int = 64
    open_files: int = 256  # per process

    def __post_init__(self) -> None:
        """Refuse invalid limits: NaN would never be exceeded, and a negative one would mean no limit to the kernel.

        Raises:
            ConfigError: a limit has the wrong type or is out of bounds.
        """
        for name, (kind, least, most) in _BOUNDS.items():
            value: Any = getattr(self, name)
            fits = type(value) is int or (kind == "seconds" and type(value) is float)
            if not fits or not least <= value <= most:
                raise ConfigError(f"limit {name}: expected {kind} from {least} to {most}, got {value!r}")


@dataclass(frozen=True)
class Result:
    """The result of a run: `why` is `ended`, `time`, `cpu`, `memory`, `output` (truncated) or `signal NAME`."""

    stdout: str
    stderr: str
    status: int
    why: str
    seconds: float
    files: dict[str, bytes]
    left_out: dict[str, str]
    level: str
    layers: tuple[str, ...] = field(default=())
    packages: str = ""  # hash of the importable packages besides the standard library
    state_lost: bool = False  # in a session: the next cell starts without earlier definitions

    @property
    def ok(self) -> bool:
        """Whether the program ended normally with status 0."""
        return self.why == "ended" and self.status == 0


class Sandbox:
    """Runs code at a level of isolation; one run at a time (see `Pool` for many).

    `packages` names the installed packages that Python code may import; `Sandbox.packages` has their versions and hash.

    Raises:
        SandboxError: the level is not available here and `allow_weaker` is not set.
        ConfigError: a package is not installed.
    """

    def __init__(self, level: str = "full", *, allow_weaker: bool = False, packages: Sequence[str] = ()):
        self.packages = chosen(packages)
        self.place = Place(checked_level(level, allow_weaker), self.packages)

    @property
    def level(self) -> str:
        """Its level."""
        return self.place.level

    def run(
        self, code: str, language: str = "python", files: dict[str, bytes] | None = None, limits: Limits | None = None
    ) -> Result:
        """Run `code` in an empty folder with `files`; only the result outlives the run.

        Raises:
            ConfigError: the language is unknown or not installed, or code, a limit or a file is invalid.
            SandboxError: the box could not be set up, or the files do not fit into it.
        """
        program = checked_text("code", code).encode("utf-8", "surrogatepass")
        job = self.place.job(language, checked_limits(limits))
        try:
            job["files"] = encoded(files, {languages.LANGUAGES[language].file: program})
        except ConfigError:
            self.place.clear(job)
            raise
        try:
            return self.place.result(self.place.connection.ask(job))
        finally:
            self.place.clear(job)

    def close(self) -> None:
        """End the sandbox's processes."""
        self.place.connection.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Place:
    """Sets up boxes of one level: a warden, its folder on disk, and the common part of all jobs."""

    def __init__(self, level: str, packages: Packages):
        self.level, self.packages = level, packages
        self._cgroup = cgroup.parent()[0]
        self.connection = Connection()
        self._inside = "namespaces" in levels.LAYERS[level]
        self._python = os.path.realpath(sys.executable)
        self._environment = environment.INSIDE if self._inside else f"{self.connection.scratch}/python"
        self._root = f"{self.connection.scratch}/root"
        os.mkdir(self._root)
        if not self._inside:  # without mounts, packages are made visible by links
            environment.lay(self._environment, self._python)
            for path, source in packages.places.items():
                link = Path(self._environment, environment.SITE, path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source)

    def job(self, language: str, limits: Limits) -> dict[str, Any]:
        """A job without files; its folder must be cleared at the end."""
        known = languages.LANGUAGES.get(language) if isinstance(language, str) else None
        if known is None:
            raise ConfigError(f"no language `{language}`; supported are {', '.join(languages.LANGUAGES)}")
        if absent := languages.missing(language):
            raise ConfigError(f"{language} needs {', '.join(absent)}, not found on the PATH; install it")
        if not os.path.isdir(self._root):
            raise SandboxError("the sandbox is closed; open a new one")
        python = language == "python"
        return {
            "session": False,
            "level": self.level,
            "limits": asdict(limits),
            "steps": languages.steps(language, self._environment),
            "visible": languages.visible(language) + ([self._environment] if python and not self._inside else []),
            "masked": site.getsitepackages([sys.base_prefix]),
            "python": self._python if python else "",
            "packages": self.packages.places if python else {},
            "reserves_memory": known.reserves_memory,
            "files": {},
            "environment": _ENVIRONMENT,
            "cgroup": self._cgroup,
            "scratch": self._root if self._inside else tempfile.mkdtemp(dir=self._root),
        }

    def clear(self, job: dict[str, Any]) -> None:
        """Remove a job's folder on disk, at levels that use one."""
        if job["scratch"] != self._root:
            shutil.rmtree(job["scratch"], ignore_errors=True)

    def result(self, answer: dict[str, Any]) -> Result:
        """Convert a box's answer to a `Result`."""
        answer["files"] = {name: base64.b64decode(data) for name, data in answer["files"].items()}
        layers = levels.LAYERS[self.level] + (("cgroup",) if self._cgroup else ())
        return Result(**answer, level=self.level, layers=layers, packages=self.packages.sha256)


class Pool:
    """One sandbox per core (or `workers`), for thousands of short runs."""

    def __init__(
        self,
        workers: int | None = None,
        level: str = "full",
        *,
        allow_weaker: bool = False,
        packages: Sequence[str] = (),
    ):
        num_workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if not isinstance(num_workers, int) or num_workers < 1:
            raise ConfigError(f"workers: expected a whole number of at least 1, got {workers!r}")
        self._all = [Sandbox(level, allow_weaker=allow_weaker, packages=packages) for _ in range(num_workers)]
        self._free: SimpleQueue[Sandbox] = SimpleQueue()
        for one in self._all:
            self._free.put(one)
        self._threads = ThreadPoolExecutor(num_workers)

    @property
    def processes(self) -> list[int]:
        """The wardens' process ids."""
        return [one.place.connection.process for one in self._all]

    def map(self, codes: Iterable[str], language: str = "python", limits: Limits | None = None) -> Iterator[Result]:
        """The results, in the order of `codes`."""
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
    packages: Sequence[str] = (),
) -> Result:
    """Run one program in a new sandbox."""
    with Sandbox(level, allow_weaker=allow_weaker, packages=packages) as sandbox:
        return sandbox.run(code, language, files, limits)


def checked_level(level: str, allow_weaker: bool) -> str:
    """The level to run at: the requested one, or with `allow_weaker` the strongest available below it."""
    if level not in levels.LEVELS:
        raise ConfigError(f"no level `{level}`; there are, strongest first, {', '.join(levels.LEVELS)}")
    there = levels.available()
    lacking = {name: there[name] for name in levels.LAYERS[level] if there[name] is not None}
    if not lacking:
        return level
    strongest = levels.strongest()
    if allow_weaker and levels.LEVELS.index(strongest) >= levels.LEVELS.index(level):
        return strongest
    reasons = "; ".join(f"{name}: {why}" for name, why in lacking.items())
    raise SandboxError(
        f"the sandbox's level `{level}` is not available here ({reasons}); the strongest here is `{strongest}`. "
        f"Set level={strongest} or allow_weaker=true; docs/sandbox.md says what each level prevents"
    )


def checked_limits(limits: Limits | None) -> Limits:
    """Check the type of limits; None means the defaults."""
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigError(f"limits: expected Limits(...), got {limits!r}")
    return Limits() if limits is None else limits


def checked_text(name: str, text: str) -> str:
    """Check that it is a string: `None`, for example, would be a valid program."""
    if not isinstance(text, str):
        raise ConfigError(f"{name}: expected text, got {type(text).__name__}")
    return text


def encoded(files: dict[str, bytes] | None, own: dict[str, bytes] | None = None) -> dict[str, str]:
    """Files in a job's form; `own` is the program's file.

    Raises:
        ConfigError: a name leads outside or is used twice, or contents are not bytes.
    """
    if files is not None and not isinstance(files, dict):
        raise ConfigError(f"files: expected a dictionary of names and bytes, got {type(files).__name__}")
    result: dict[str, str] = {}
    for name, data in [*(own or {}).items(), *(files or {}).items()]:
        path = _plain(name)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ConfigError(f"{name!r}: expected the file's bytes, got {type(data).__name__}")
        if path in result:
            raise ConfigError(f"{name!r}: there is another file of this name (perhaps the code); choose another name")
        result[path] = base64.b64encode(data).decode()
    for path in result:
        if above := [str(one) for one in PurePosixPath(path).parents if str(one) in result]:
            raise ConfigError(f"{path!r}: {above[0]!r} is a file, not a folder; rename one of them")
    return result


def _plain(name: str) -> str:
    expected = f"{name!r}: expected a file's name inside the box, such as `data/in.csv`"
    if not isinstance(name, str):
        raise ConfigError(expected)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or path.parts[0] == ".tmp" or "\0" in name:
        raise ConfigError(expected)
    try:
        too_long = [part for part in path.parts if len(part.encode()) > 255]
    except UnicodeEncodeError:
        raise ConfigError(f"{expected}, in Unicode without lone surrogates") from None
    if too_long or len(path.parts) > MAX_DEPTH:
        raise ConfigError(f"{expected}, with at most {MAX_DEPTH} parts of at most 255 bytes")
    return str(path)
