"""Run folders: a stage's settings, inputs, metrics and results, so that it can be checked and resumed.

    settings.yaml     the resolved settings; feeding the file back reruns the stage
    environment.json  versions, machine, command
    inputs.json       the content hash of every input, so that results can be traced back to their data
    metrics.jsonl     one JSON line per logged step
    run.json          written last: format version, state, hashes of the outputs, headline figures

Output is never half-written: files and folders are written under a temporary name, flushed and renamed. A folder in use
is locked by its process; the lock ends with the process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from herd.config import dump, to_dict
from herd.environment import environment, now
from herd.errors import CapacityError, CheckpointError, DataError
from herd.lock import locked
from herd.log import duration, say, size
from herd.renamed import with_new_names

FORMAT = 1
"""Version of the run folder's layout; folders of another version are refused."""

_BOOKKEEPING = {"settings.yaml", "environment.json", "inputs.json", "metrics.jsonl", "run.json", ".lock"}
_SPARE_DISK = 50_000_000  # bytes to leave free beyond what a stage needs


class Run:
    """An open run folder. Made by `open_run`."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self._began = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether an earlier run with the same settings and inputs has completed here."""
        return self.manifest["state"] == "finished"

    def need(self, *, disk_bytes: float = 0, seconds: float | None = None) -> None:
        """Print what the stage will take, and refuse to start if the disk is too small.

        Raises:
            CapacityError: less than `disk_bytes` (plus a reserve, minus what an interrupted run has already written
                here) is free.
        """
        free, held = shutil.disk_usage(self.path).free, _held_bytes(self.path)
        missing = max(disk_bytes - held, 0) + _SPARE_DISK
        time_text = f", about {duration(seconds)}" if seconds else ""
        say(f"  needs {size(disk_bytes)} of disk ({size(free)} free){time_text}")
        if free < missing:
            raise CapacityError(
                f"{self.path}: needs {size(missing)} of disk, {size(free)} is free; free some space or choose another "
                "out="
            )

    def log(self, **figures: Any) -> None:
        """Append one line to metrics.jsonl."""
        line = json.dumps(figures, default=float) + "\n"
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8", opener=_unlinked) as file:
            file.write(line)

    def rewind(self, step: int) -> None:
        """Drop metrics logged after `step`, which a resumed run will log again."""
        kept = [row for row in read_metrics(self.path) if row.get("step", 0) <= step]
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def finish(self, figures: dict[str, Any] | None = None, **pointers: str) -> None:
        """Record that the run is complete: the hashes of its outputs and its headline figures.

        `pointers` are added to the manifest as they are (the demo's `checkpoint="dpo/checkpoint"`).
        """
        outputs = {str(file.relative_to(self.path)): _record(file) for file in _output_files(self.path)}
        seconds = self.manifest.get("seconds", 0.0) + time.monotonic() - self._began
        self.manifest |= {"state": "finished", "seconds": round(seconds, 2), "figures": figures or {}, **pointers}
        self.manifest |= {"finished": now(), "outputs": outputs}
        self._write_manifest()

    def reopen(self) -> None:
        """Mark a finished run as running again: until `finish`, its outputs may change."""
        self.manifest["state"] = "running"
        self._write_manifest()

    def _write_manifest(self) -> None:
        atomic_write(self.path / "run.json", json.dumps(self.manifest, indent=1))

    def _interrupted(self) -> None:
        """Record the time spent so far, for the run that resumes this one."""
        self.manifest["seconds"] = self.manifest.get("seconds", 0.0) + round(time.monotonic() - self._began, 2)
        self._write_manifest()


@contextmanager
def open_run(
    path: Path, *, stage: str, settings: Any, inputs: Mapping[str, Path | str | Sequence[Path | str] | None]
) -> Iterator[Run]:
    """Open the run folder of a stage: new, interrupted (to be resumed) or finished (to be skipped).

    `inputs` maps settings that name files or folders to their paths; they are compared by content, so an input may be
    moved.

    Raises:
        CheckpointError: the folder is in use, has another format version, belongs to another stage, was made with other
            settings or inputs, holds foreign files or links, or its recorded outputs were changed.
        DataError: an input is missing.
    """
    given = {name: value for name, value in inputs.items() if value is not None and value != []}
    hashes = {name: _fingerprint_all(value) for name, value in given.items()}
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        manifest = _enter(path, stage, settings, hashes)
        run = Run(path, manifest)
        if run.finished:
            _check_outputs(path, manifest)
            shutil.rmtree(path / "state", ignore_errors=True)  # left by a run that was killed right after finishing
            say(f"{stage}: already done in {path}, skipped")
            yield run
            return
        _refuse_links(path)
        atomic_write(path / "settings.yaml", dump(settings))
        atomic_write(path / "environment.json", json.dumps(environment(), indent=1))
        atomic_write(path / "inputs.json", json.dumps(_inputs_record(given, hashes), indent=1))
        run._write_manifest()
        say(f"{stage}: {'continues' if manifest.get('seconds') else 'starts'} in {path}")
        try:
            yield run
        except BaseException:
            run._interrupted()
            raise


def read_manifest(path: Path) -> dict[str, Any]:
    """The `run.json` of a run folder.

    Raises:
        CheckpointError: not a run folder, or of another format version.
    """
    try:
        manifest = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not a run folder (it has no run.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}/run.json: cannot be read: {error}") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: run folder of format {version}, this Herd reads format {FORMAT}; "
            "use the version of Herd that wrote it, or choose another out="
        )
    return manifest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl; a last line cut off by a kill is skipped."""
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return rows


def read_record(path: Path) -> Any:
    """A JSON file that an interrupted run left for the one that resumes it.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); bring it back, or delete the run folder {path.parent} to start afresh"
        ) from None


def fingerprint(path: Path) -> str:
    """Content hash of a file or folder; for a finished run folder, the hash of its recorded outputs.

    Raises:
        DataError: the path does not exist, or the folder is empty.
        CheckpointError: a run folder that is not finished, or whose outputs were changed since.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        return _hash_file(path)
    if (path / "run.json").exists():
        manifest = read_manifest(path)
        if manifest["state"] != "finished":
            raise CheckpointError(f"{path}: this run is not finished; run its stage again to complete it")
        _check_outputs(path, manifest)
        return _hash_text(json.dumps({name: record["sha256"] for name, record in manifest["outputs"].items()}))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise DataError(f"{path}: the folder is empty")
    return _hash_text("".join(f"{file.relative_to(path)}\0{_hash_file(file)}\n" for file in files))


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all: under a temporary name, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)  # left by a killed process; a link in its place is not followed
    try:
        with open(aside, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block succeeds, and is deleted when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
        aside.chmod(0o755)
        if path.exists():
            old = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
            os.replace(aside, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


# ---- opening a folder ------------------------------------------------------------------------------------------------


def _enter(path: Path, stage: str, settings: Any, hashes: dict[str, str]) -> dict[str, Any]:
    wished = _comparable(settings)
    fresh = {"format": FORMAT, "stage": stage, "state": "running", "settings": wished, "inputs": hashes}
    if not (path / "run.json").exists():
        foreign = [
            item.name for item in path.iterdir() if item.name not in _BOOKKEEPING and not item.name.endswith(".tmp")
        ]
        if foreign:
            raise CheckpointError(f"{path}: holds files that are not a Herd run ({foreign[0]}); choose another out=")
        return fresh
    manifest = read_manifest(path)
    manifest["settings"] = with_new_names(type(settings).__name__, manifest["settings"])
    if manifest["stage"] != stage:
        raise CheckpointError(f"{path}: is a `{manifest['stage']}` run, not a `{stage}` run; choose another out=")
    if manifest["state"] == "running" and not _holds_work(path):
        return fresh  # an earlier attempt failed before it wrote anything
    free, usual = set(_free(settings)), set(_usual(settings))
    within = tuple(f"{name}." for name in free)
    differences = _differences(manifest["settings"], wished, usual)
    changed = [line for name, line in differences if name not in free and not name.startswith(within)] + [
        f"input `{name}` has other content"
        for name in dict.fromkeys([*hashes, *manifest["inputs"]])
        if manifest["inputs"].get(name) != hashes.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{path}: this run folder was made with other settings or inputs:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nChoose another out=, or delete the folder to start afresh"
        )
    return manifest


def _refuse_links(path: Path) -> None:
    """Refuse links: in a folder from somebody else they could make a stage overwrite files elsewhere."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (link := Path(folder, name)).is_symlink():
                raise CheckpointError(
                    f"{link}: is a link to {os.readlink(link)}, and a stage writes in this folder; "
                    "put the file itself there, or choose another out="
                )


def _unlinked(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _holds_work(path: Path) -> bool:
    return bool(_output_files(path)) or (path / "state").exists() or any(path.glob("*/run.json"))


def _differences(old: dict, new: dict, usual: set[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting that differs: its name, and a text with both values.

    A setting that an older version did not have counts as equal where it has its default (is in `usual`).
    """
    for key in [*new, *(key for key in old if key not in new)]:
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, usual, f"{name}.")
        elif before != after and (key in old or name not in usual):
            yield name, f"{name}: {before} there, {after} now"


def _free(settings: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings that may change when a run is resumed (`may_change` of their class)."""
    if dataclasses.is_dataclass(settings):
        yield from (prefix + name for name in getattr(settings, "may_change", ()))
        for field in dataclasses.fields(settings):
            yield from _free(getattr(settings, field.name), f"{prefix}{field.name}.")


def _usual(settings: Any, prefix: str = "", owner: Any = None) -> Iterator[str]:
    """Names of the settings that have their default value; `owner` holds a stage's own defaults of a group."""
    if dataclasses.is_dataclass(settings):
        for field in dataclasses.fields(settings):
            value, name = getattr(settings, field.name), prefix + field.name
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            default = getattr(owner, field.name, default)
            if value == default:
                yield name
            yield from _usual(value, f"{name}.", default)


def _comparable(settings: Any) -> dict:
    """The settings that a result depends on, without paths: inputs are compared by content and may be moved."""
    return json.loads(json.dumps(_without_paths(settings)))


def _without_paths(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _without_paths(item) for key, item in value.items() if _matters(item)}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value if not isinstance(item, Path)]
    return value


def _matters(value: Any) -> bool:
    """Whether results depend on a setting; some only change how they are computed (`only_how` of their class)."""
    return not isinstance(value, Path) and not getattr(value, "only_how", False)


def _inputs_record(inputs: dict[str, Any], hashes: dict[str, str]) -> dict:
    return {name: {"path": to_dict(value), "sha256": hashes[name]} for name, value in inputs.items()}


def _check_outputs(path: Path, manifest: dict[str, Any]) -> None:
    """Check that a finished run's files are unchanged; equal size and modification time are trusted."""
    for name, record in manifest["outputs"].items():
        file = path / name
        if not file.exists():
            raise CheckpointError(f"{file}: is missing from a finished run; delete {path} to make it again")
        stat = file.stat()
        if stat.st_size == record["bytes"] and stat.st_mtime_ns == record["mtime_ns"]:
            continue
        if _hash_file(file) != record["sha256"]:
            raise CheckpointError(
                f"{file}: was damaged or edited after the run finished (its content hash differs); "
                f"restore it, or delete {path} to make it again"
            )


# ---- files and hashes ------------------------------------------------------------------------------------------------


def _held_bytes(path: Path) -> int:
    """The size of a folder's files; another process may be writing there."""
    total = 0
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _output_files(path: Path) -> list[Path]:
    """A run's output files: all but the bookkeeping, the trainer's state and nested run folders."""
    nested = {manifest.parent for manifest in path.glob("*/run.json")}
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.relative_to(path).parts[0] not in _BOOKKEEPING | {"state"}
        and not file.name.endswith(".tmp")
        and not nested.intersection(file.parents)
    )


def _record(file: Path) -> dict[str, Any]:
    stat = file.stat()
    return {"sha256": _hash_file(file), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _fingerprint_all(value: Path | str | Sequence[Path | str]) -> str:
    if isinstance(value, str):
        return _hash_text(value)  # a text identifies remote data
    return fingerprint(value) if isinstance(value, Path) else _hash_text("".join(map(_fingerprint_all, value)))


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()  # odd file names


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
