"""How deep the references of a schema or a grammar go, checked before a compiler follows them recursively.

llguidance follows references by recursion: a chain of a few thousand overflows its stack and ends the process. So the
longest chain is computed beforehand. Of a cycle all members count, since the compiler's order within it is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from herd.errors import RequestError

MAX_REFERENCES = 400
"""References or rules in one chain."""
MAX_LEVELS = 1600
"""Levels of JSON along one chain; llguidance overflows beyond 3,200."""
MAX_PARTS = 200_000
"""Parts of a schema that are visited, counted once for each reference to them."""

_ITSELF = "#"


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a JSON schema whose references go too deep.

    Raises:
        RequestError: more than `MAX_REFERENCES` in a chain, or `MAX_LEVELS` levels of JSON along one.
    """
    levels: dict[str, int] = {}
    leads: dict[str, set[str]] = {}
    elsewhere: set[str] = set()  # references by id or anchor: each may lengthen the chain by one
    waiting, num_parts = [_ITSELF], 0
    while waiting:
        name = waiting.pop()
        if name in levels:
            continue
        try:
            start = _at(schema, name)
        except (LookupError, ValueError):
            elsewhere.add(name)
            levels[name], leads[name] = 1, set()
            continue
        deepest, references, parts = 1, set(), [(start, 1)]
        while parts:
            part, level = parts.pop()
            num_parts += 1
            deepest = max(deepest, level)
            if isinstance(part, Mapping):
                reference = part.get("$ref")
                if isinstance(reference, str):
                    references.add(reference)
                parts += [(value, level + 1) for value in part.values() if isinstance(value, Mapping | list | tuple)]
            elif isinstance(part, list | tuple):
                parts += [(value, level + 1) for value in part if isinstance(value, Mapping | list | tuple)]
        if num_parts > MAX_PARTS or deepest > MAX_LEVELS:
            raise RequestError("json_schema cannot be followed: it is too large or nested too deeply")
        levels[name], leads[name] = deepest, references
        waiting += references
    num_links = longest(leads, dict.fromkeys(leads, 1)) - 1 + len(elsewhere)
    if num_links > MAX_REFERENCES:
        raise RequestError(
            f"json_schema cannot be followed: {num_links:,} references ($ref) in a chain or cycle; "
            f"at most {MAX_REFERENCES} are allowed"
        )
    if (depth := longest(leads, levels)) > MAX_LEVELS:
        raise RequestError(
            f"json_schema cannot be followed: references go {depth:,} levels deep; at most {MAX_LEVELS:,} are allowed"
        )


def check_grammar(text: str) -> None:
    """Refuse a Lark grammar whose rules, or the schemas in it, go too deep.

    Raises:
        RequestError: more than `MAX_REFERENCES` rules in a chain.
    """
    starts = list(_RULE.finditer(text))
    ends = [rule.start() for rule in starts[1:]] + [len(text)]
    names = {rule[1] for rule in starts}
    leads: dict[str, set[str]] = {name: set() for name in names}
    for rule, end in zip(starts, ends, strict=True):
        leads[rule[1]] |= names.intersection(_WORD.findall(text, rule.end(), end))
    if (num_rules := longest(leads, dict.fromkeys(names, 1))) > MAX_REFERENCES:
        raise RequestError(
            f"grammar cannot be followed: {num_rules:,} rules in a chain or cycle; at most {MAX_REFERENCES} are allowed"
        )
    for place in re.finditer(r"%json\b\s*", text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, place.end())
        except RecursionError:
            raise RequestError("grammar cannot be followed: a schema in it is nested too deeply") from None
        except ValueError:
            continue  # the compiler reports where
        if isinstance(schema, dict):
            check_schema(schema)


_RULE = re.compile(r"^[ \t]*[!?]*([A-Za-z_]\w*)[^:\n]*:", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*")


def _at(schema: Any, reference: str) -> Any:
    """The part that a pointer (`#/$defs/a`) names."""
    if reference != _ITSELF and not reference.startswith("#/"):
        raise LookupError(reference)
    part = schema
    for word in unquote(reference).split("/")[1:]:
        word = word.replace("~1", "/").replace("~0", "~")
        part = part[int(word)] if isinstance(part, list | tuple) else part[word]
        if not isinstance(part, Mapping | list | tuple | bool):
            raise LookupError(reference)
    return part


def longest(leads: Mapping[str, Iterable[str]], weights: Mapping[str, int]) -> int:
    """The weight of the heaviest path through a graph; a cycle counts with all its members."""
    back: dict[str, list[str]] = {name: [] for name in leads}
    for name, others in leads.items():
        for other in others:
            back[other].append(name)
    best: dict[int, int] = {}  # the heaviest path up to and including each component
    component_of: dict[str, int] = {}
    for root in reversed(_finished(leads)):  # Kosaraju: strongly connected components in topological order
        if root in component_of:
            continue
        members, waiting = [], [root]
        component = component_of[root] = len(best)
        while waiting:
            members.append(name := waiting.pop())
            new = [other for other in dict.fromkeys(back[name]) if other not in component_of]
            component_of.update(dict.fromkeys(new, component))
            waiting += new
        before = (best[component_of[o]] for name in members for o in back[name] if component_of[o] != component)
        best[component] = sum(weights[name] for name in members) + max(before, default=0)
    return max(best.values(), default=0)


def _finished(leads: Mapping[str, Iterable[str]]) -> list[str]:
    """The names in the order in which a depth-first search finishes them."""
    seen: set[str] = set()
    order: list[str] = []
    for root in leads:
        if root in seen:
            continue
        seen.add(root)
        path = [(root, iter(leads[root]))]
        while path:
            name, others = path[-1]
            following = next((other for other in others if other not in seen), None)
            if following is None:
                order.append(name)
                path.pop()
            else:
                seen.add(following)
                path.append((following, iter(leads[following])))
    return order
