"""A JSON object that comes piece by piece and may be the call of a tool, read as far as it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

KEYS = ("type", "name", "parameters", "arguments", "function", "id")
"""What the object of a call may hold."""
_ARGUMENTS = ("parameters", "arguments")
_MARK = re.compile(r'[{}\[\]",:]')
_IN_STRING = re.compile(r'["\\]')


class ObjectScan:
    """Follows one object's brackets and strings; at its top it knows keys, the tool's name, where arguments begin.

    With `name`, the object is the arguments of that tool. `is_none` says that it is no call of a tool in `names`.
    """

    def __init__(self, names: Collection[str], *, name: str | None = None) -> None:
        self._names, self._is_arguments = names, name is not None
        self.text, self.name = "", name
        self.closed = self.is_none = False
        self._at, self._depth, self._in_string = 0, 0, False
        self._string_from, self._key, self.first_key = 0, "", ""
        self._from: int | None = 0 if name is not None else None
        self._to: int | None = None

    @property
    def has_arguments(self) -> bool:
        """Their object has begun."""
        return self._from is not None

    def arguments(self) -> str:
        """Their text so far."""
        return "" if self._from is None else self.text[self._from : self._at if self._to is None else self._to]

    def feed(self, text: str) -> str:
        """Read on; what stands behind the object's end comes back."""
        self.text += text
        while self._at < len(self.text) and not self.closed:
            if not (self._on_in_string() if self._in_string else self._on()):
                break
        if not self.closed:
            self._look_at_what_is_open()
            return ""
        rest, self.text = self.text[self._at :], self.text[: self._at]
        return rest

    def _on_in_string(self) -> bool:
        match = _IN_STRING.search(self.text, self._at)
        if match is None:
            self._at = len(self.text)
        elif match[0] == '"':
            self._in_string, self._at = False, match.end()
            if self._depth == 1 and not self._is_arguments:
                self._string_ended()
        elif match.end() == len(self.text):  # what is escaped is not there yet
            self._at = match.start()
            return False
        else:
            self._at = match.end() + 1
        return True

    def _on(self) -> bool:
        match = _MARK.search(self.text, self._at)
        if match is None:
            self._at = len(self.text)
            return True
        mark, self._at = match[0], match.end()
        if mark == '"':
            self._in_string, self._string_from = True, match.start()
        elif mark in "{[":
            if mark == "{" and self._depth == 1 and self._key in _ARGUMENTS and self._from is None:
                self._from = match.start()
            self._depth += 1
        elif mark in "}]":
            self._depth -= 1
            if self._depth == 1 and self._key in _ARGUMENTS and self._to is None and not self._is_arguments:
                self._to = self._at
            self.closed = self._depth == 0
        elif mark == "," and self._depth == 1:
            self._key = ""
        return True

    def _string_ended(self) -> None:
        try:
            word = json.loads(self.text[self._string_from : self._at])
        except ValueError:
            self.is_none = True
            return
        if not self._key:
            self._key = word
            self.first_key = self.first_key or word
            self.is_none = self.is_none or word not in KEYS
        elif self._key == "name" and self.name is None:
            self.name = word
            self.is_none = self.is_none or word not in self._names

    def _look_at_what_is_open(self) -> None:
        """A key or a name that can no longer become a right one."""
        if self._in_string and self._depth == 1 and not self._is_arguments:
            word = self.text[self._string_from + 1 :]
            among = KEYS if not self._key else self._names if self._key == "name" else None
            if among is not None and "\\" not in word and not any(name.startswith(word) for name in among):
                self.is_none = True


def call_in(scan: ObjectScan) -> tuple[str, str] | None:
    """The name and the arguments (JSON of an object) of a call that is whole; None where it is none."""
    try:
        data = json.loads(scan.text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if scan.has_arguments and scan.name is not None:
        return scan.name, scan.arguments()
    if isinstance(data.get("function"), dict):
        data = data["function"]
    name = data.get("name")
    given = [data[key] for key in _ARGUMENTS if key in data]
    if not isinstance(name, str) or len(given) != 1 or not set(data) <= set(KEYS):
        return None
    arguments = _object(given[0])
    return None if arguments is None else (name, arguments)


def _object(value: Any) -> str | None:
    """The arguments as JSON: null is none, a string may hold them."""
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
    if value is None:
        return "{}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
