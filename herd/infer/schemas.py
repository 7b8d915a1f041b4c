"""JSON schemas rewritten so that the compiler can enforce them token by token.

An object that lists its properties and does not mention others (`additionalProperties`) is closed, since small models
would invent properties. Formats that the compiler does not know are dropped: by the standard they are annotations.
`propertyNames`, and `uniqueItems` over a few named values, are rewritten with keywords that the compiler knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from herd.errors import RequestError

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
"""The formats that are enforced."""
MAX_SET = 8
"""Most named values of an array with `uniqueItems`, which is rewritten as an enumeration of all its subsets."""

_SPEAKS = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_CHOICES = ("anyOf", "oneOf", "allOf")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LITERAL = ("const", "enum", "default", "examples", "required")


def followable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as the compiler gets it; `{}` becomes any object.

    Raises:
        RequestError: it uses a keyword that cannot be enforced during decoding, such as general `uniqueItems`.
    """
    return _Rewriter(schema).part(dict(schema), "#", closes=True) or {"type": "object"}


class _Rewriter:
    """Rewrites one schema. Parts that describe the same object together stay open, or one would exclude the others."""

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
        """The rewritten part of the schema at a path (`#/$defs/Name`)."""
        if isinstance(schema, list | tuple):
            return [self.part(item, f"{place}/{index}", closes=True) for index, item in enumerate(schema)]
        if not isinstance(schema, Mapping):
            return schema
        closes = closes and place not in self._joined and not _is_joined(schema)
        result: dict[str, Any] = {}
        for key, value in self._plain(schema).items():
            where = f"{place}/{key}"
            if key in _LITERAL:
                result[key] = value
            elif key in _BY_NAME and isinstance(value, Mapping):
                result[key] = {name: self.part(item, f"{where}/{name}", closes=True) for name, item in value.items()}
            elif key in _CHOICES and isinstance(value, list):
                alone = not _is_joined(schema)
                result[key] = [self.part(item, f"{where}/{i}", closes=alone) for i, item in enumerate(value)]
            else:
                result[key] = self.part(value, where, closes=True)
        if closes and isinstance(result.get("properties"), dict) and not any(word in result for word in _SPEAKS):
            for name in result.get("required") or ():
                result["properties"].setdefault(name, {})
            result["additionalProperties"] = False
        return result

    def _plain(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The same without keywords that the compiler does not know, where other keywords express them."""
        result = dict(schema)
        if isinstance(result.get("format"), str) and result["format"] not in FORMATS:
            del result["format"]
        if result.get("unevaluatedProperties") is False and not any(word in result for word in (*_CHOICES, "$ref")):
            del result["unevaluatedProperties"]
            result.setdefault("additionalProperties", False)
        if "uniqueItems" in result:
            result = self._set(result)
        if "propertyNames" in result:
            result = self._map(result)
        return result

    def _set(self, schema: dict[str, Any]) -> dict[str, Any]:
        if not schema.pop("uniqueItems") or schema.get("maxItems", 2) in (0, 1):
            return schema
        values = self._named(schema.get("items"))
        if values is None or len(values) > MAX_SET:
            raise RequestError(
                "json_schema cannot be followed: `uniqueItems` is supported only for items with an `enum` of up to "
                f"{MAX_SET} values; leave it out, and remove duplicates from the answer"
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
            listed = schema.get("properties", {})
            schema["properties"] = {name: listed.get(name, value) for name in allowed}
            schema["additionalProperties"] = False
        elif isinstance(names, Mapping) and isinstance(names.get("pattern"), str) and "properties" not in schema:
            schema["patternProperties"] = {names["pattern"]: value}
            schema["additionalProperties"] = False
        else:
            raise RequestError(
                "json_schema cannot be followed: `propertyNames` is supported only as an `enum` or a `pattern`; "
                "leave it out, or list the properties"
            )
        return schema

    def _named(self, schema: Any) -> list[Any] | None:
        """The values of an enumeration, perhaps by reference; None if it is none."""
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
        part: Any = self._schema
        for name in place.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(part, Mapping):
                part = part.get(name)
            elif isinstance(part, list) and name.isdigit() and int(name) < len(part):
                part = part[int(name)]
            else:
                return None
        return part


def _is_joined(schema: Mapping[str, Any]) -> bool:
    """Whether the schema combines several schemas of the same object."""
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    beside = "properties" in schema and ("$ref" in schema or any(word in schema for word in _CHOICES))
    return several or beside


def _joined_references(schema: Any) -> Iterator[str]:
    """The references to schemas that are combined with others."""
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
    """The references to schemas of the same object."""
    references, parts = [], [schema]
    while parts:
        part = parts.pop()
        if isinstance(part.get("$ref"), str):
            references.append(part["$ref"])
        for word in _CHOICES:
            parts += [item for item in part.get(word) or () if isinstance(item, Mapping)]
    return references
