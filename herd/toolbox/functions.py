"""Functions of a Python file of one's own as tools: the schema from the signature, the words from the docstring.

The file runs with the server's own rights, as any program that one starts: only a model's arguments are not trusted,
and they are checked against the signature before a function is called.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import re
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ConfigDict, PydanticUserError, ValidationError, create_model

from herd.errors import ConfigError
from herd.toolbox.errand import Errand, Failed

_ARGUMENT = re.compile(r"^ *(?::param(?: +[\w.\[\]]+)? +)?(\w+)(?: *\([^)]*\))? *: +(.+)$", re.MULTILINE)
_SECTION = re.compile(r"^\s*(?:Args|Arguments|Parameters|Returns|Raises|Examples?)\s*:\s*$|^\s*:(?:param|return)", re.M)
_STRICT = ConfigDict(extra="forbid", protected_namespaces=())
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Function:
    """A typed function as a tool; its result is told as text, or as JSON where it is none.

    Raises:
        ConfigError: a parameter has no type, or one that JSON does not know.
    """

    def __init__(self, function: Callable[..., Any], where: str = "") -> None:
        self._function = function
        name = function.__name__
        place = f"{where}: {name}" if where else name
        words = inspect.getdoc(function) or ""
        said = dict(_ARGUMENT.findall(words))
        try:
            types = typing.get_type_hints(function, include_extras=True)
        except (NameError, TypeError) as error:
            raise ConfigError(f"{place}: its types cannot be read ({error})") from None
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in _KINDS or parameter.name not in types:
                raise ConfigError(
                    f"{place}: parameter `{parameter}` has no type that a schema could say; expected for instance "
                    f"`{parameter.name}: str`, or rename the function to `_{name}` to keep it out"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (types[parameter.name], default)
        try:
            with warnings.catch_warnings(action="ignore"):  # a parameter may be called as a method of pydantic's
                self._model = create_model(name, __config__=_STRICT, **fields)
            schema = _plain(self._model.model_json_schema())
        except (PydanticUserError, NameError) as error:
            raise ConfigError(f"{place}: a parameter is none that JSON could hold ({error})") from None
        for parameter_name, property in schema.get("properties", {}).items():
            if parameter_name in said:
                property.setdefault("description", said[parameter_name].strip())
        head = _SECTION.split(words, maxsplit=1)[0].strip()
        self.function = {"name": name, "description": " ".join(head.split()) or name, "parameters": schema}

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """What the function returns.

        Raises:
            Failed: the arguments do not fit, or it raised.
        """
        try:
            given = self._model.model_validate(arguments)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors())
            raise Failed(f"the arguments do not fit: {faults}") from None
        values = {name: getattr(given, name) for name in type(given).model_fields}
        try:
            if inspect.iscoroutinefunction(self._function):
                result = await self._function(**values)
            else:
                result = await asyncio.to_thread(self._function, **values)
        except Exception as error:
            raise Failed(f"{type(error).__name__}: {error}") from None
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def module_of(file: Path, setting: str) -> ModuleType:
    """The module in a user's Python file, which `setting` names.

    Raises:
        ConfigError: the file is not there, is no Python file, or fails as it is read.
    """
    if not file.is_file():
        raise ConfigError(f"{setting}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"herd_{setting}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{setting}: {file} is no Python file; expected one that ends with .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{setting}: {file} fails as it is read: {type(error).__name__}: {error}") from None
    return module


def functions_of(file: Path) -> list[Function]:
    """The functions that a Python file defines, but those whose names begin with `_`.

    Raises:
        ConfigError: the file is not there, fails as it is read, or holds none; or a function has no types.
    """
    module = module_of(file, "tools")
    own = [
        one
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not own:
        raise ConfigError(f"tools: {file} defines no function; expected `def name(argument: str) -> str:`")
    return [Function(one, str(file)) for one in own]


def _plain(schema: Any) -> Any:
    """A schema without the titles that pydantic adds."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _plain(one) for name, one in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
