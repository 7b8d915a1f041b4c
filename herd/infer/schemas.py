"""JSON schemas as they can be followed token by token: closed where they are silent, without what only describes.

What a schema does not speak of, a small model fills with inventions: an object that lists its properties and says
nothing of others (`additionalProperties`) is closed. Formats that the compiler does not know are annotations, as the
standard has it. Maps by named keys, and sets of a few named values, are written out in words the compiler knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from herd.errors import RequestError

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
"""Those that are kept to."""
MAX_SET = 8
"""Named values of a set that are written out, as all its subsets."""

_SPEAKS = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_CHOICES = ("anyOf", "oneOf", "allOf")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LITERAL = ("const", "enum", "default", "examples", "required")


def followable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that is given to the compiler; `{}` is any object.

    Raises:
        RequestError: it asks for what cannot be kept to while writing, such as values that differ from one another.
    """
    return _Rewriter(schema).part(dict(schema), "#", closes=True) or {"type": "object"}


class _Rewriter:
    """One schema, and the places in it that are parts of a whole: what is closed for itself shuts out the others."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._joined: set[str] = set()
        waiting = list(_joined_references(schema))
        while waiting:
            place = waiting.pop()
            if place not in self._joined:
                self._joined.add(place)
                target = self._at(place)
                waiting += _heads(target) if isinstance(target, Mapping) else ()

    def part(self, schema: Any, place: str, *, closes: bool) -> Any:
        """A part of the schema that stands at a place (`#/$defs/Name`)."""
        if isinstance(schema, list | tuple):
            return [self.part(item, f"{place}/{index}", closes=True) for index, item in enumerate(schema)]
        if not isinstance(schema, Mapping):
            return schema
        closes = closes and place not in self._joined and not _is_joined(schema)
        found: dict[str, Any] = {}
        for key, value in self._plain(schema).items():
            where = f"{place}/{key}"
            if key in _LITERAL:
                found[key] = value
            elif key in _BY_NAME and isinstance(value, Mapping):
                found[key] = {name: self.part(item, f"{where}/{name}", closes=True) for name, item in value.items()}
            elif key in _CHOICES and isinstance(value, list):
                alone = not _is_joined(schema)
                found[key] = [self.part(item, f"{where}/{i}", closes=alone) for i, item in enumerate(value)]
            else:
                found[key] = self.part(value, where, closes=True)
        if closes and isinstance(found.get("properties"), dict) and not any(word in found for word in _SPEAKS):
            for name in found.get("required") or ():
                found["properties"].setdefault(name, {})
            found["additionalProperties"] = False
        return found

    def _plain(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The same without the words that the compiler does not know, where others say it."""
        found = dict(schema)
        if isinstance(found.get("format"), str) and found["format"] not in FORMATS:
            del found["format"]
        if found.get("unevaluatedProperties") is False and not any(word in found for word in (*_CHOICES, "$ref")):
            del found["unevaluatedProperties"]
            found.setdefault("additionalProperties", False)
        if "uniqueItems" in found:
            found = self._set(found)
        if "propertyNames" in found:
            found = self._map(found)
        return found

    def _set(self, schema: dict[str, Any]) -> dict[str, Any]:
        if not schema.pop("uniqueItems") or schema.get("maxItems", 2) in (0, 1):
            return schema
        values = self._named(schema.get("items"))
        if values is None or len(values) > MAX_SET:
            raise RequestError(
                "json_schema cannot be followed: `uniqueItems` is kept to only for items of up to "
                f"{MAX_SET} named values (`enum`); leave it out, and drop doubles from the answer"
            )
        least, most = schema.get("minItems", 0), min(schema.get("maxItems", len(values)), len(values))
        sizes = range(least, most + 1)
        return {"enum": [list(chosen) for size in sizes for chosen in itertools.combinations(values, size)]}

    def _map(self, schema: dict[str, Any]) -> dict[str, Any]:
        names = self._resolved(schema.pop("propertyNames"))
        value = schema.get("additionalProperties", {})
        value = {} if value is True else value
        if names is True or (isinstance(names, Mapping) and set(names) <= {"type", "title", "description"}):
            return schema
        allowed = self._named(names)
        if allowed is not None:
            given = schema.get("properties", {})
            schema["properties"] = {name: given.get(name, value) for name in allowed}
            schema["additionalProperties"] = False
        elif isinstance(names, Mapping) and isinstance(names.get("pattern"), str) and "properties" not in schema:
            schema["patternProperties"] = {names["pattern"]: value}
            schema["additionalProperties"] = False
        else:
            raise RequestError(
                "json_schema cannot be followed: `propertyNames` is kept to only as an `enum` or a `pattern`; "
                "leave it out, or list the properties"
            )
        return schema

    def _named(self, schema: Any) -> list[Any] | None:
        """The values of an enumeration, also one by reference."""
        schema = self._resolved(schema)
        if not isinstance(schema, Mapping):
            return None
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        return list(values) if isinstance(values, list | tuple) else None

    def _resolved(self, schema: Any) -> Any:
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            return self._at(schema["$ref"])
        return schema

    def _at(self, place: str) -> Any:
        found: Any = self._schema
        for name in place.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(name)
            elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found


def _is_joined(schema: Mapping[str, Any]) -> bool:
    """The schema says what holds together with what others say of the same object."""
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    beside = "properties" in schema and ("$ref" in schema or any(word in schema for word in _CHOICES))
    return several or beside


def _joined_references(schema: Any) -> Iterator[str]:
    """The references that stand where parts of a whole stand."""
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            if _is_joined(part):
                yield from _heads(part)
            parts += [value for key, value in part.items() if key not in _LITERAL]
        elif isinstance(part, list | tuple):
            parts += part


def _heads(schema: Mapping[str, Any]) -> list[str]:
    """The references that speak of the same object as the schema does."""
    found, parts = [], [schema]
    while parts:
        part = parts.pop()
        if isinstance(part.get("$ref"), str):
            found.append(part["$ref"])
        for word in _CHOICES:
            parts += [item for item in part.get(word) or () if isinstance(item, Mapping)]
    return found
