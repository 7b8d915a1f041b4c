"""Where a task's rows are, and in which of the forms that the same rows are published in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.errors import DataError
from herd.evals.rows import alike, files_of, names_of, rows_of
from herd.evals.templates import expression_of
from herd.log import say

Row = dict[str, Any]


def found(path: Path, beside: Path, data: Path | None) -> Path:
    """A task's file in the folder of the data, or else beside the task; by its name, or else with another ending."""
    places = [data / path] if data else []
    places.append(beside / path)
    named = next((place for place in places if is_there(place)), None)
    return named or next((other for place in places for other in alike(place) if is_there(other)), places[0])


def is_there(path: Path) -> bool:
    """Whether any file that it names is there."""
    return any(file.exists() for file in files_of(path))


def chosen(forms: Sequence[Mapping[str, Any]], own: Path, places: tuple[Path, Path | None]) -> Row:
    """What of a task is otherwise where its rows are in another of the forms it knows; nothing where in its own.

    Its own file may have another form's columns; where it is absent, the first form whose file is there is taken.
    """
    if is_there(path := found(own, *places)):
        for form in forms:
            if has(path, form.get("has") or ()):
                kept = {"data": own} if "data" in form else {}
                return _without_absent(form, places) | kept
        return {}
    for form in forms:
        if "data" in form and is_there(path := found(Path(form["data"]), *places)):
            if has(path, form.get("has") or ()) or not form.get("has"):
                return dict(form)
            told = ", ".join(form["has"])
            raise DataError(f"{path}: expected the columns {told} of {form.get('source', 'a form of its task')}")
    return {}


def _without_absent(form: Mapping[str, Any], places: tuple[Path, Path | None]) -> Row:
    """A form that was told by its columns: its own examples' file counts only where it is there."""
    shots = form.get("shots_from")
    absent = shots is not None and not is_there(found(Path(shots), *places))
    return {name: value for name, value in form.items() if not (name == "shots_from" and absent)}


def has(path: Path, columns: Iterable[str]) -> bool:
    """Whether the first row of a file has these columns, each told from others by its inner ones: `choices.text`."""
    wanted = list(columns)
    if not wanted or not any(file.stat().st_size for file in files_of(path)):
        return False
    first = next(rows_of(path), {})
    return all(_reaches(first, column.split(".")) for column in wanted)


def _reaches(value: Any, names: Sequence[str]) -> bool:
    return not names or (isinstance(value, Mapping) and names[0] in value and _reaches(value[names[0]], names[1:]))


def say_lacking(name: str, path: Path) -> None:
    """Of a list of files that all belong to a task, say which are not there."""
    names = names_of(path)
    if len({one.partition(".")[2] for one in names}) > 1:
        return  # alternatives, of which one is enough
    lacking = [one for one in names if not list(path.parent.glob(one))]
    if lacking and len(lacking) < len(names):
        say(f"  {name}: {len(lacking)} of its {len(names)} parts are not there: {', '.join(lacking)}")


def joined(rows: Sequence[Row], tables: Mapping[str, list[Row]], join: Mapping[str, str]) -> list[Row]:
    """Rows with what those of a table add that have the same value in a column."""
    for name, column in join.items():
        others = {str(row.get(column)): row for row in tables[name]}
        rows = [others.get(str(row.get(column)), {}) | row for row in rows]
    return list(rows)


def gathered(rows: Sequence[Row], gather: Mapping[str, str]) -> list[Row]:
    """Rows each with the list of those that share a value, and its own place among them."""
    for name, expression in gather.items():
        values = [str(expression_of(expression, row)) for row in rows]
        groups: dict[str, list[Row]] = defaultdict(list)
        for value, row in zip(values, rows, strict=True):
            groups[value].append(row)
        seen: dict[str, int] = defaultdict(int)
        placed = []
        for value, row in zip(values, rows, strict=True):
            placed.append(row | {name: groups[value], "place": seen[value]})
            seen[value] += 1
        rows = placed
    return list(rows)


def derived(rows: Sequence[Row], derive: Mapping[str, str], path: Path) -> list[Row]:
    """Rows with columns made of their others, one after the other.

    Raises:
        DataError: a row lacks what one is made of.
    """
    made = []
    for number, row in enumerate(rows, 1):
        row = dict(row)
        for name, expression in derive.items():
            try:
                row[name] = expression_of(expression, row)
            except DataError as error:
                raise DataError(f"{path}, row {number}: derive: {name}: {error}") from None
        made.append(row)
    return made
