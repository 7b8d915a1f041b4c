"""Responses that are kept, so that a later one may go on from them: an SQLite file. Off unless a file is named."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from herd.errors import ConfigError

MAX_KEPT = 10_000
"""Responses; with one more the oldest goes."""
MAX_CHAIN = 1_000
"""Responses that are gone through for one conversation."""

_TABLE = """
create table if not exists responses (
    id text primary key, owner text not null, created real not null, previous text, input text not null,
    response text not null
)
"""


class Kept(NamedTuple):
    """One response: the items that were sent with it, and itself."""

    previous: str | None
    input: list[dict[str, Any]]
    response: dict[str, Any]


class Store:
    """The kept responses; each is there for the owner of the key that asked for it alone.

    Raises:
        ConfigError: the file cannot be opened, or is no SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))  # what people wrote is theirs alone
            self._connection = sqlite3.connect(path, check_same_thread=False)
            with self._connection:
                self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"store: {path} cannot be used ({error}); name a file that SQLite may write") from None

    def put(self, owner: str, kept: Kept) -> None:
        """Keep a response."""
        row = (
            kept.response["id"],
            owner,
            time.time(),
            kept.previous,
            json.dumps(kept.input),
            json.dumps(kept.response),
        )
        with self._lock, self._connection:
            self._connection.execute("insert or replace into responses values (?, ?, ?, ?, ?, ?)", row)
            self._connection.execute(
                "delete from responses where rowid <= (select max(rowid) from responses) - ?", (MAX_KEPT,)
            )

    def get(self, owner: str, id: str) -> Kept | None:
        """A response by its id; None where the owner has none."""
        query = "select previous, input, response from responses where id = ? and owner = ?"
        with self._lock:
            row = self._connection.execute(query, (id, owner)).fetchone()
        return None if row is None else Kept(row[0], json.loads(row[1]), json.loads(row[2]))

    def delete(self, owner: str, id: str) -> bool:
        """Forget a response; whether it was there."""
        with self._lock, self._connection:
            found = self._connection.execute("delete from responses where id = ? and owner = ?", (id, owner))
        return found.rowcount > 0

    def answered(self, owner: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Items of kept answers by their ids, of those that are there."""
        query = (
            "select item.value from responses, json_each(response, '$.output') as item where owner = ? "
            "and json_extract(item.value, '$.id') in (select value from json_each(?))"
        )
        with self._lock:
            rows = self._connection.execute(query, (owner, json.dumps(list(ids)))).fetchall()
        found = [json.loads(row[0]) for row in rows]
        return {item["id"]: item for item in found}

    def items(self, owner: str, id: str) -> list[dict[str, Any]] | None:
        """What was said up to a response's end, oldest first; None where it is not there."""
        kept = self.get(owner, id)
        if kept is None:
            return None
        found: list[dict[str, Any]] = []
        for _ in range(MAX_CHAIN):
            found[:0] = [*kept.input, *kept.response["output"]]
            before = self.get(owner, kept.previous) if kept.previous else None
            if before is None:
                break
            kept = before
        return found
