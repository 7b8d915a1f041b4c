"""Function calls that a model writes, against those that were expected."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Call = tuple[str, dict[str, Any]]
"""A function's name and its arguments by name."""

_FENCE = re.compile(r"```\w*\n?(.*?)```", re.DOTALL)
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_KEYWORD = re.compile(rf"([(,]\s*)({'|'.join(keyword.kwlist)})=")  # no name in Python, but one in Java's calls
_LOOSE = re.compile(r"[ ,./\-_*^]")


def calls_of(answer: str) -> list[Call]:
    """The calls of an answer: `[f(a=1), g(b='x')]`, `f(a=1)`, or JSON objects with a `name`; none where it has none.

    Where there are `<tool_call>` tags, the calls are those between them.
    """
    if tagged := _TAGGED.findall(answer):
        return [call for one in tagged for call in _json_calls(one) or _python_calls(one.strip())]
    fenced = _FENCE.search(answer)
    text = (fenced[1] if fenced else answer).strip().removeprefix("<|python_tag|>")
    for candidate in (text, text[text.find("[") : text.rfind("]") + 1], text[text.find("{") : text.rfind("}") + 1]):
        found = _json_calls(candidate) or _python_calls(candidate)
        if found:
            return found
    return []


def _json_calls(text: str) -> list[Call]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    rows = found if isinstance(found, list) else [found]
    calls = []
    for row in rows:
        inner = row.get("function", row) if isinstance(row, dict) else None
        inner = inner if isinstance(inner, dict) else row
        given: Any = next((inner[key] for key in ("arguments", "parameters") if key in inner), {}) if inner else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not isinstance(given, dict):
            return []
        calls.append((inner["name"], given))
    return calls


def _python_calls(text: str) -> list[Call]:
    try:
        body = ast.parse(_KEYWORD.sub(r"\1\2_=", text), mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _call(node: ast.AST) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(one.arg is None for one in node.keywords):
        raise ValueError("no call with named arguments")
    named = {str(one.arg): _literal(one.value) for one in node.keywords}
    return ast.unparse(node.func), {name[:-1] if keyword.iskeyword(name[:-1]) else name: named[name] for name in named}


def _literal(node: ast.AST) -> Any:
    """A value; a bare name or an expression is kept as the text it is, as in Java's and JavaScript's calls."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def right_calls(calls: Sequence[Call], expected: Sequence[Mapping[str, Any]] | str, functions: Sequence[Any]) -> bool:
    """Whether calls are the expected ones, in any order.

    `expected` names each function with its arguments, each with the list of values allowed ("" among them: it may be
    left out); `some`: any call is right; an empty list: none is. `functions` are their JSON schemas, for the types.

    Source: the rules of the Berkeley Function Calling Leaderboard's AST check.
    """
    if isinstance(expected, str):
        return bool(calls) and expected == "some"
    if len(calls) != len(expected):
        return False
    schemas = {one["name"]: one.get("parameters", {}) for one in functions if isinstance(one, Mapping)}
    left = list(calls)
    for wanted in expected:
        name, arguments = next(iter(wanted.items()))
        schema = schemas.get(name, {})
        found = next((one for one in left if one[0] == name and _fits(one[1], arguments, schema)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _fits(given: Mapping[str, Any], allowed: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    if any(name not in given for name in schema.get("required", ())) or any(name not in allowed for name in given):
        return False
    for name, values in allowed.items():
        values = values if isinstance(values, list) else [values]
        if name not in given:
            if values and "" not in values and None not in values:
                return False
        elif not any(_same(given[name], value, properties.get(name, {}).get("type", "")) for value in values):
            return False
    return True


def _same(given: Any, value: Any, kind: str) -> bool:
    if isinstance(given, str) or isinstance(value, str):
        strict = isinstance(given, str) and isinstance(value, str)
        printed = kind[:1].isupper() or kind in ("any", "char", "long", "double", "")  # Java's and JavaScript's types
        return (strict or printed) and _loosely(given) == _loosely(value)
    if isinstance(given, bool) or isinstance(value, bool):
        return given is value
    if isinstance(given, int | float) and isinstance(value, int | float):
        return given == value and (isinstance(given, int) or kind != "integer")
    if isinstance(given, list | tuple) and isinstance(value, list | tuple):
        return len(given) == len(value) and all(_same(one, other, "") for one, other in zip(given, value, strict=True))
    if isinstance(given, dict) and isinstance(value, dict):
        return _fits(given, value, {})
    return bool(given == value)


def _loosely(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return _LOOSE.sub("", text).lower().replace("'", '"')


def calls_within(text: str) -> Iterator[tuple[str, set[str]]]:
    """Every call that stands anywhere in a text: its function and its literal arguments, as Python reads them."""
    for found in re.finditer(r"[A-Za-z_][\w.]*\(", text):
        depth = 0
        for end in range(found.end() - 1, min(len(text), found.end() + 2000)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if not depth:
                break
        try:
            node = ast.parse(text[found.start() : end + 1], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if isinstance(node, ast.Call):
            values = [*node.args, *(one.value for one in node.keywords)]
            yield ast.unparse(node.func), {repr(one.value) for one in values if isinstance(one, ast.Constant)}


def names_api(answer: str, references: Sequence[str]) -> float:
    """A call of the answer is the reference's function with all its literal arguments, by place or by name.

    Source: Patil et al. 2023 (Gorilla), AST sub-tree matching.
    """
    wanted = [call for one in references for call in list(calls_within(one))[:1]]
    if not wanted:  # no Python, such as a command line
        return float(any(_loosely(one) in _loosely(answer) for one in references))
    made = list(calls_within(answer))
    return float(any(name == other and literals <= given for name, literals in wanted for other, given in made))
