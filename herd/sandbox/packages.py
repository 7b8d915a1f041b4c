"""The installed packages that code in a box may import: the named ones and their dependencies, identified by a hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from herd.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Packages:
    """`versions` by name, `sha256` of all files' paths and contents (empty if none), and `places`."""

    versions: dict[str, str]
    sha256: str
    places: dict[str, str]  # path in site-packages: path on this machine


def chosen(names: Sequence[str]) -> Packages:
    """The installed packages of these names, with their installed dependencies.

    Raises:
        ConfigError: one is not installed, or without files in site-packages (an editable install).
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"packages: expected a list of names such as ['numpy'], got {names!r}")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"packages: {name!r} is not a package name; expected only the name, such as `numpy`")
    return _chosen(tuple(names))


@cache
def _chosen(names: tuple[str, ...]) -> Packages:
    if not names:
        return Packages({}, "", {})
    found: dict[str, metadata.Distribution] = {}
    for name in names:
        try:
            _add(metadata.distribution(name), found)
        except metadata.PackageNotFoundError:
            raise ConfigError(f"packages: `{name}` is not installed here; install it, or leave it out") from None
    places: dict[str, str] = {}
    for name, one in found.items():
        own = _places(one)
        if name in map(_plain, names) and not any(not path.endswith(".dist-info") for path in own):
            raise ConfigError(f"packages: `{name}` has no files of its own (an editable install?); install it as usual")
        places |= own
    versions = {name: one.version for name, one in sorted(found.items())}
    return Packages(versions, _hash(places), dict(sorted(places.items())))


def _add(one: metadata.Distribution, found: dict[str, metadata.Distribution]) -> None:
    name = _plain(one.metadata["Name"])
    if name in found:
        return
    found[name] = one
    for need in one.requires or []:
        # A dependency that is not installed, usually one for another system or Python, is skipped.
        if "extra ==" not in need and (match := _NAME.match(need)):
            try:
                _add(metadata.distribution(match[0]), found)
            except metadata.PackageNotFoundError:
                continue


def _places(one: metadata.Distribution) -> dict[str, str]:
    """The smallest set of folders and files that contains the package and no other."""
    shared = _shared_folders()
    places = {}
    for file in one.files or []:
        if file.parts[0] in ("..", "/", "__pycache__") or file.suffix == ".pth":
            continue  # programs and manual pages; .pth lines would be executed at startup
        parts = 1
        while parts < len(file.parts) and file.parts[:parts] in shared:
            parts += 1
        path = "/".join(file.parts[:parts])
        places[path] = str(one.locate_file(path))
    return {path: os.path.realpath(source) for path, source in places.items() if os.path.exists(source)}


@cache
def _shared_folders() -> frozenset[tuple[str, ...]]:
    """Folders of site-packages with files of more than one package, such as `google`."""
    owners: Counter[tuple[str, ...]] = Counter()
    for one in metadata.distributions():
        parts = [file.parts for file in one.files or []]
        owners.update({each[:depth] for each in parts for depth in range(1, len(each))})
    return frozenset(folder for folder, count in owners.items() if count > 1)


def _hash(places: dict[str, str]) -> str:
    whole = hashlib.sha256()
    for path, source in sorted(places.items()):
        files = [Path(source)] if os.path.isfile(source) else sorted(Path(source).rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                whole.update(f"{path}/{file.relative_to(source)}\0{digest}\n".encode())
    return whole.hexdigest()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
