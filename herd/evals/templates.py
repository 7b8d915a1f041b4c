"""Jinja over a row: texts, values that keep their kind, and conditions; sandboxed, for a task's file is anybody's."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from herd.errors import ConfigError, DataError


def _filled(value: Any) -> Any:
    """What a template writes: a null would stand in the text as None."""
    if value is None:
        raise jinja2.UndefinedError("a value that it writes is null")
    return value


_TEMPLATES = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_filled
)
_TEMPLATES.filters |= {
    "literal": lambda cell: ast.literal_eval(cell) if isinstance(cell, str) else cell,  # as AGIEval's cells are
    "fromjson": lambda cell: json.loads(cell) if isinstance(cell, str) else cell,
    "tojson": lambda value: json.dumps(value, ensure_ascii=False),  # Jinja's own is for pages: it writes ' as \\u0027
    "search": lambda text, pattern: next(iter(re.findall(pattern, text, re.DOTALL)), ""),  # its first group
    "resub": lambda text, pattern, new: re.sub(pattern, new, text),
    "zip": lambda first, second: list(zip(first, second, strict=True)),
}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


_TEMPLATES.tests["json"] = _is_json


def render(template: str, row: Mapping[str, Any]) -> str:
    """A template over a row.

    Raises:
        DataError: the row lacks a column.
        ConfigError: it is no Jinja.
    """
    if "{" not in template:
        return template
    return str(_over(row, template, _template))


def value_of(template: str, row: Mapping[str, Any]) -> Any:
    """What one expression in braces gives, a list as a list; of anything else the text.

    Raises:
        DataError: the row lacks a column.
        ConfigError: it is no Jinja.
    """
    inner = template.strip().removeprefix("{{").removesuffix("}}").strip()
    if not template.strip().startswith("{{") or "{{" in inner or "}}" in inner:
        return render(template, row)
    return expression_of(inner, row)


def expression_of(expression: str, row: Mapping[str, Any]) -> Any:
    """The value of a column, or of a Jinja expression over columns.

    Raises:
        DataError: the row lacks a column.
        ConfigError: it is no Jinja.
    """
    return row[expression] if expression in row else _over(row, expression, _expression)


def list_of(text: str, row: Mapping[str, Any]) -> list[Any]:
    """What an expression gives, or a template with statements writes as JSON: a list.

    Raises:
        DataError: it gives none, or the row lacks a column.
        ConfigError: it is no Jinja.
    """
    try:
        found = json.loads(render(text, row)) if "{%" in text else expression_of(text, row)
    except json.JSONDecodeError as error:
        raise DataError(f"{text!r}: expected a list as JSON ({error})") from None
    if not isinstance(found, list):
        raise DataError(f"{text!r}: expected a list, got {type(found).__name__}")
    return found


def holds(expression: str, row: Mapping[str, Any]) -> bool:
    """Whether an expression is true of a row."""
    return bool(expression_of(expression, row))


@functools.lru_cache(maxsize=256)
def _template(text: str) -> Callable[..., Any]:
    return _TEMPLATES.from_string(text).render


@functools.lru_cache(maxsize=256)
def _expression(text: str) -> Callable[..., Any]:
    return _TEMPLATES.compile_expression(text, undefined_to_none=False)


def _over(row: Mapping[str, Any], text: str, compiled: Callable[[str], Callable[..., Any]]) -> Any:
    try:
        found = compiled(text)(**{str(key): value for key, value in row.items() if key != "row"}, row=row)
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, jinja2.Undefined):
                str(one)  # which tells what is undefined
        return found
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{text!r}: no Jinja template ({error})") from None
    except (jinja2.TemplateError, TypeError, ValueError, SyntaxError, ArithmeticError, LookupError) as error:
        raise DataError(f"{text!r}: {error}; the row has {', '.join(map(str, row))}") from None
