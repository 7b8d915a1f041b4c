"""Git repositories as a source: the tracked text files of a commit, repeats left out, licence noted."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from herd.curate.read.kinds import CODE_SUFFIXES, TEXT_SUFFIXES
from herd.errors import DataError

_LICENCE_FILES = re.compile(r"^(licen[cs]e|copying|unlicense)([-.].*)?$", re.I)
_LICENCES = (
    ("Apache-2.0", r"apache license\s+version 2\.0"),
    ("AGPL-3.0", r"gnu affero general public license\s+version 3"),
    ("LGPL-3.0", r"gnu lesser general public license\s+version 3"),
    ("GPL-3.0", r"gnu general public license\s+version 3"),
    ("GPL-2.0", r"gnu general public license\s+version 2"),
    ("MPL-2.0", r"mozilla public license,? version 2\.0"),
    ("MIT", r"permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms[\s\S]*neither the name"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("ISC", r"permission to use, copy, modify, and(?:/or)? distribute this software"),
    ("Unlicense", r"this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", r"cc0 1\.0 universal"),
)


class Repository(NamedTuple):
    """A checked-out repository at its current commit."""

    path: Path
    name: str
    commit: str
    date: str  # of the commit, ISO 8601
    licence: str  # SPDX identifier, `other` for one that is not known, empty where there is none


def open_repository(path: Path) -> Repository:
    """What is known of a repository on the disk.

    Raises:
        DataError: it is no git repository with a commit, or git is not installed.
    """
    commit, date = _git(path, "log", "-1", "--format=%H %cI").split()
    return Repository(path, path.resolve().name.removesuffix(".git"), commit, date, licence(path))


def licence(path: Path) -> str:
    """The SPDX identifier of the licence file at the top of a repository."""
    for name in sorted(_git(path, "ls-tree", "--name-only", "HEAD").split("\n")):
        if _LICENCE_FILES.match(name):
            text = " ".join(_git(path, "show", f"HEAD:{name}").lower().split())
            return next((spdx for spdx, pattern in _LICENCES if re.search(pattern, text)), "other")
    return ""


def rows(repository: Repository, counts: Counter, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The text and code files of the commit as rows that `read_pages` takes; each content once.

    `counts` gathers files, repeated and too large ones, and what is no text.
    """
    seen: set[bytes] = set()
    listing = _git(repository.path, "ls-tree", "-r", "-z", "--long", "HEAD")
    for entry in filter(None, listing.split("\0")):
        facts, _, name = entry.partition("\t")
        mode, kind, sha, size = facts.split()
        if kind != "blob" or mode == "120000" or Path(name).suffix.lower() not in CODE_SUFFIXES | TEXT_SUFFIXES:
            continue
        counts["files"] += 1
        if int(size) > max_bytes:
            counts["too large"] += 1
            continue
        content = _git_bytes(repository.path, "cat-file", "blob", sha)
        key = blake2b(b"\n".join(line.rstrip() for line in content.splitlines()), digest_size=16).digest()
        if key in seen:
            counts["repeated"] += 1
            continue
        seen.add(key)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            counts["not UTF-8"] += 1
            continue
        url = f"git:{repository.name}@{repository.commit[:12]}/{name}"
        yield {"url": url, "text": text, "date": repository.date, "path": name, "licence": repository.licence}


def _git(path: Path, *arguments: str) -> str:
    return _git_bytes(path, *arguments).decode("utf-8", "replace").strip("\n")


def _git_bytes(path: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(path), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise DataError("git is not installed; it is needed to read repositories") from None
    if done.returncode:
        raise DataError(f"{path}: {done.stderr.decode(errors='replace').strip() or 'no git repository'}")
    return done.stdout
