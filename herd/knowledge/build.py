"""A folder into an index: only what has changed is read again, what is gone is forgotten, what is left out is told."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from herd.errors import DataError
from herd.formats.encoder import open_encoder
from herd.knowledge.index import understood
from herd.knowledge.passages import passages_of
from herd.knowledge.sections import CRAWLS, Section, crawl_sections, read_sections
from herd.knowledge.store import about, add_file, connect, remove_file, told
from herd.lock import locked
from herd.log import progress, say
from herd.model.encoder import Encoder

MAX_FILE_BYTES = 50_000_000
_FILES_A_COMMIT = 50
_TEXTS_A_COMMIT = 256


@dataclass
class Indexed:
    """What became of a folder's files."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    without_vector: int = 0  # passages in a script that the encoder does not know
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> `name: detail`

    def leave(self, name: str, reason: str, detail: str) -> None:
        """Note a file that is not in the index."""
        self.left_out.setdefault(reason, []).append(f"{name}: {detail}" if detail else name)


def index_folder(
    folder: Path | str,
    out: Path | str,
    *,
    encoder: Path | str | None = None,
    max_bytes: int = MAX_FILE_BYTES,
) -> Indexed:
    """Make an index of a folder's files, or bring one up to date.

    An encoder once given is the index's own and is used again; another one makes the vectors anew.

    Raises:
        DataError: no such folder, or the index is damaged or of another folder.
        CheckpointError: the encoder cannot be read, or another process writes this index.
    """
    root, place = Path(folder).resolve(), Path(out).resolve()
    if not root.is_dir():
        raise DataError(f"{folder}: no folder lies there; expected the folder of your files")
    if place == root:
        raise DataError(f"out={out} is the folder of your files itself; give the index a place of its own")
    place.mkdir(parents=True, exist_ok=True)
    with locked(place), told(place), closing(connect(place, writing=True)) as base:
        if (known := about(base).get("root", str(root))) != str(root):
            raise DataError(f"{out} is the index of {known}, not of {root}; give another out=")
        base.execute("INSERT OR REPLACE INTO about VALUES ('root', ?)", (str(root),))
        found = Indexed()
        _read_files(base, root, place, max_bytes, found)
        if place_of_encoder := encoder or about(base).get("encoder"):
            _embed(base, str(place_of_encoder), found)
        found.passages = base.execute("SELECT count(*) FROM passages").fetchone()[0]
        base.commit()
    return found


def _read_files(base: sqlite3.Connection, root: Path, place: Path, max_bytes: int, found: Indexed) -> None:
    known = {name: rest for name, *rest in base.execute("SELECT name, digest, reason FROM files")}
    files = list(_files(root, place, found))
    with progress("read", total=len(files), unit="files") as bar:
        for number, (name, path) in enumerate(files, 1):
            _read_file(base, name, path, known.pop(name, None), max_bytes, found)
            if number % _FILES_A_COMMIT == 0:
                base.commit()
            bar.advance(1)
    for name in known:
        remove_file(base, name)
        found.removed += 1
    if found.removed or found.changed:
        base.execute("INSERT INTO words (words) VALUES ('optimize')")  # else deleted words stay in its pages
    base.commit()


def _files(root: Path, place: Path, found: Indexed) -> Iterator[tuple[str, Path]]:
    """Name and path of every plain file; links and what is hidden are noted and left out."""
    for folder, inner, names in os.walk(root, onerror=lambda fault: found.leave(str(fault.filename), "no access", "")):
        inside = Path(folder)
        for name in sorted(inner):
            path = inside / name
            if name.startswith(".") or path.is_symlink():
                reason = "hidden" if name.startswith(".") else "link"
                found.leave(f"{path.relative_to(root)}/", reason, "")
        inner[:] = sorted(n for n in inner if n[0] != "." and not (inside / n).is_symlink() and inside / n != place)
        for name in sorted(names):
            path = inside / name
            short = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")
            if name.startswith("."):
                found.leave(short, "hidden", "")
            elif path.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
                found.leave(short, "link", "a link, a pipe or a device")
            else:
                yield short, path


def _read_file(
    base: sqlite3.Connection, name: str, path: Path, known: list[str | None] | None, max_bytes: int, found: Indexed
) -> None:
    problem: tuple[str, str] | None = None
    digest, size, changed, content = "", 0, 0, b""
    try:
        status = path.stat()
        size, changed = status.st_size, status.st_mtime_ns
        if size > max_bytes:
            problem = ("too large", f"{size:,} bytes, at most {max_bytes:,} (max_bytes=...)")
        else:
            with path.open("rb") as file:
                content = file.read(max_bytes + 1)
            digest = hashlib.sha256(content).hexdigest()
    except OSError as fault:
        problem = ("no access", fault.strerror or str(fault))
    if known and known == [digest, None] and not problem:
        base.execute("UPDATE files SET size = ?, changed = ? WHERE name = ?", (size, changed, name))
        found.unchanged += 1
        return
    sections: list[Section] = []
    if not problem and name.lower().endswith(CRAWLS):
        sections, left = crawl_sections(path)
        for reason, count in left.items():
            found.leave(name, f"{reason}, in a crawl", f"{count:,} records")
    elif not problem:
        sections, problem = read_sections(name, content)
    passages = list(passages_of(sections))
    if not passages and not problem:
        problem = ("no text", "nothing to read in it")
    if known:
        remove_file(base, name)
    add_file(base, (name, digest, size, changed, *(problem or (None, None))), [] if problem else passages)
    if problem:
        found.leave(name, *problem)
    elif known and known[1] is None:
        found.changed += 1
    else:
        found.added += 1


def _embed(base: sqlite3.Connection, place: str, found: Indexed) -> None:
    """Vectors for the passages that have none; for all where the encoder is another than before."""
    encoder = open_encoder(place)
    known = about(base).get("fingerprint")
    if known and known != encoder.fingerprint:
        say("  the encoder is another than before: all vectors are made anew")
        base.execute("DELETE FROM vectors")
    where = str(Path(place).resolve()) if Path(place).is_dir() else place
    for pair in (("encoder", where), ("fingerprint", encoder.fingerprint)):
        base.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", pair)
    query = "SELECT id, heading, text FROM passages WHERE id NOT IN (SELECT passage FROM vectors) ORDER BY id"
    rows = base.execute(query).fetchall()
    with progress("embed", total=len(rows), unit="passages") as bar:
        for start in range(0, len(rows), _TEXTS_A_COMMIT):
            _embed_rows(base, encoder, rows[start : start + _TEXTS_A_COMMIT])
            base.commit()
            bar.advance(len(rows[start : start + _TEXTS_A_COMMIT]))
    found.without_vector = base.execute("SELECT count(*) FROM vectors WHERE vector IS NULL").fetchone()[0]


def _embed_rows(base: sqlite3.Connection, encoder: Encoder, rows: list[tuple[int, str, str]]) -> None:
    texts = {number: f"{heading.rpartition(' > ')[2]}\n{text}".strip() for number, heading, text in rows}
    known = [number for number, text in texts.items() if understood(encoder, text)]
    vectors = encoder.embed([texts[number] for number in known]).numpy().astype("<f2") if known else ()
    made = {number: vector.tobytes() for number, vector in zip(known, vectors)}
    base.executemany("INSERT INTO vectors VALUES (?, ?)", [(number, made.get(number)) for number in texts])
