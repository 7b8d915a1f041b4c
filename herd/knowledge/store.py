"""The file of an index: one SQLite database with files, passages, their words (FTS5) and their vectors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from herd.errors import CapacityError, DataError
from herd.knowledge.passages import Passage
from herd.knowledge.terms import searchable

FILE = "index.sqlite"
_FORMAT = "1"
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, size INTEGER NOT NULL,
    changed INTEGER NOT NULL, reason TEXT, detail TEXT
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, file INTEGER NOT NULL, heading TEXT NOT NULL, place TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX passages_of_file ON passages (file);
CREATE TABLE vectors (passage INTEGER PRIMARY KEY, vector BLOB);
CREATE VIRTUAL TABLE words USING fts5(
    heading, text, content='', tokenize="porter unicode61 remove_diacritics 2 categories 'L* N* Co M*'"
);
"""


@contextmanager
def told(place: Path) -> Iterator[None]:
    """Faults of the database as a sentence.

    Raises:
        DataError: it is damaged.
        CapacityError: it is in use, or the disk is full, or SQLite lacks FTS5.
    """
    try:
        yield
    except sqlite3.OperationalError as fault:
        if "no such table" in str(fault):
            raise DataError(f"{place} holds no whole index; make it again: herd index FOLDER out={place}") from None
        raise CapacityError(f"{place}: {fault}; SQLite with FTS5, room on the disk and rights are needed") from None
    except sqlite3.DatabaseError as fault:
        raise DataError(f"{place} is damaged ({fault}); delete it and make it again with herd index") from None


def connect(place: Path, *, writing: bool = False) -> sqlite3.Connection:
    """The database of an index, made where it is to be written and not there yet.

    Raises:
        DataError: there is none, or it is of another version or damaged.
    """
    file = place / FILE
    if not writing and not file.is_file():
        raise DataError(f"{place}: no index lies there; make one: herd index FOLDER out={place}")
    with told(place):
        base = sqlite3.connect(f"{file.resolve().as_uri()}?mode={'rwc' if writing else 'ro'}", uri=True, timeout=30,
                               check_same_thread=False)  # fmt: skip
        if writing:
            base.execute("PRAGMA secure_delete=ON")  # what was deleted is overwritten
            if not base.execute("SELECT 1 FROM sqlite_master").fetchone():
                base.executescript(f"BEGIN;{_SCHEMA}INSERT INTO about VALUES ('format', '{_FORMAT}');COMMIT;")
        if (found := about(base).get("format")) != _FORMAT:
            raise DataError(f"{place} is an index of version {found}, expected {_FORMAT}; delete it and make it again")
    return base


def about(base: sqlite3.Connection) -> dict[str, str]:
    """What the index says of itself: `root`, `encoder`, `fingerprint`."""
    return dict(base.execute("SELECT key, value FROM about"))


def remove_file(base: sqlite3.Connection, name: str) -> None:
    """Forget a file, its passages, their words and vectors."""
    query = "SELECT p.id, p.heading, p.text FROM passages p JOIN files f ON p.file = f.id WHERE f.name = ?"
    for number, heading, text in base.execute(query, (name,)).fetchall():
        gone = (number, searchable(heading), searchable(text))
        base.execute("INSERT INTO words (words, rowid, heading, text) VALUES ('delete', ?, ?, ?)", gone)
        base.execute("DELETE FROM vectors WHERE passage = ?", (number,))
        base.execute("DELETE FROM passages WHERE id = ?", (number,))
    base.execute("DELETE FROM files WHERE name = ?", (name,))


def add_file(base: sqlite3.Connection, row: Sequence[object], passages: Sequence[Passage]) -> None:
    """Take in a file: its name, digest, size, time of change, reason and detail of a problem; and its passages."""
    columns = "(name, digest, size, changed, reason, detail)"
    file = base.execute(f"INSERT INTO files {columns} VALUES (?, ?, ?, ?, ?, ?)", row).lastrowid
    for one in passages:
        number = base.execute(
            "INSERT INTO passages (file, heading, place, text) VALUES (?, ?, ?, ?)", (file, *one)
        ).lastrowid
        words = (number, searchable(one.heading), searchable(one.text))
        base.execute("INSERT INTO words (rowid, heading, text) VALUES (?, ?, ?)", words)
