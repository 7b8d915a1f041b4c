"""Fields that are accepted and cannot be honoured: each is named once, in a response header and in the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

HEADER = "x-herd-ignored"
MAX_NAMED = 10
_LONGEST_NAME = 60


class Unheeded:
    """Marks a field; the values in `neutral` ask for nothing that is not done anyway."""

    def __init__(self, *neutral: Any) -> None:
        self.neutral = (None, *neutral)


def named(body: BaseModel, also: Iterator[str] | None = None) -> list[str]:
    """The names of what a body holds of such fields, each once, and what an open object holds that nobody knows."""
    return told([*_names(body, ""), *(also or ())])


def told(names: Iterable[str]) -> list[str]:
    """Names as a header and a log can hold them, each once, the first of many."""
    found = dict.fromkeys(name[:_LONGEST_NAME] for name in names)
    names = [name if name.isprintable() else ascii(name) for name in found]
    return names if len(names) <= MAX_NAMED else [*names[:MAX_NAMED], f"and {len(names) - MAX_NAMED} more"]


def _names(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, BaseModel):
                yield from _names(item, place)
        return
    if not isinstance(value, BaseModel):
        return
    before = f"{place}." if place else ""
    for name, item in (value.model_extra or {}).items():
        if item is not None:
            yield before + name
    for name in value.model_fields_set:
        info = type(value).model_fields.get(name)
        if info is None:
            continue
        item = getattr(value, name)
        mark = next((mark for mark in info.metadata if isinstance(mark, Unheeded)), None)
        if mark is not None and item not in mark.neutral and item != []:
            yield before + (info.alias or name)
        yield from _names(item, before + (info.alias or name))
