"""Settings: frozen dataclasses read from YAML and `key=value` words, validated once, all errors reported together.

    @settings
    class Optimizer:
        \"""AdamW.\"""
        lr: float = 3e-4
        \"""Peak learning rate, reached after the warm-up.\"""

    load(Optimizer, Path("recipe.yaml"), ["lr=1e-3"])

A recipe may name another as `base:` and change only what differs. A class may have a static method `derived(values)`
that computes defaults from the values given (a learning rate from a size); given values win. The docstring under a
field is its documentation, shown by `--help` and in the JSON schema for editors.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from herd import renamed
from herd.errors import ConfigError
from herd.markup import MAX_VALUES, count_values, parse_markup, read_markup

S = TypeVar("S")
_LONGEST_CHAIN = 20  # of recipes, each the `base:` of the next
_MAX_FAULTS_SHOWN = 50  # faults


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[S]) -> type[S]:
    """Make a settings class: a frozen keyword-only dataclass that refuses unknown fields.

    Defaults may be lists or dictionaries; each object gets its own copy. The order of fields: required ones, then the
    class's own, then inherited ones.
    """
    own = inspect.get_annotations(cls)
    for name in own:
        default = cls.__dict__.get(name)
        if isinstance(default, list | dict):
            setattr(cls, name, dataclasses.field(default_factory=functools.partial(copy.copy, default)))
    rules = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    setattr(cls, "__pydantic_config__", rules)  # noqa: B010  (mypy: a type has no such attribute)
    made = dataclasses.dataclass(kw_only=True, frozen=True)(cls)
    if any(dataclasses.is_dataclass(base) for base in cls.__bases__):
        known: dict[str, dataclasses.Field[Any]] = getattr(made, "__dataclass_fields__")  # noqa: B009
        fields = {name: known[name] for name in [*own, *known]}
        needed = {name: field for name, field in fields.items() if _default(field) is dataclasses.MISSING}
        setattr(made, "__dataclass_fields__", needed | fields)  # noqa: B010
    return made


def load(
    cls: type[S],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    where: str = "",
) -> S:
    """Read a recipe, override it with `values` (from `where`) and then the `key=value` words, and validate the result.

    Raises:
        ConfigError: with all errors at once: unknown keys (and the nearest known one), values of the wrong kind,
            missing required settings, settings that contradict each other.
    """
    merged, origin = _read_recipe(file) if file else ({}, {})
    _merge(merged, copy.deepcopy(dict(values or {})), origin, where)
    faults = _apply_overrides(cls, merged, origin, overrides)
    faults += _unknown_keys(cls, merged, origin)
    faults += _derive(cls, merged)
    _fill_groups(cls, merged, cls)
    try:
        result: S = _adapter(typing.cast(Any, cls)).validate_python(merged)
    except ValidationError as error:
        faults += _validation_faults(error, origin)
    if faults:
        raise ConfigError(_report(cls, faults))
    return result


def recipe_keys(file: Path) -> set[str]:
    """The top-level settings that a recipe and its `base:` give.

    Raises:
        ConfigError: it is missing or not a YAML mapping.
    """
    return set(_read_recipe(file)[0])


def find_recipe(path: Path) -> Path:
    """A recipe by its path, or by its name among the shipped ones (`demo/pretrain.yaml`)."""
    if path.exists():
        return path
    package = Path(__file__).parent  # recipes are inside an installed package, or beside it in a checkout
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    shipped = folder.joinpath(*(path.parts[1:] if path.parts[0] == "recipes" else path.parts))
    return shipped if shipped.exists() else path


def to_dict(value: Any) -> Any:
    """Settings as plain dictionaries, lists, strings and numbers, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump(value: Any) -> str:
    """Settings as YAML text that loads as the same settings."""
    return yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True, width=120)


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a settings class, for completion in editors (`# yaml-language-server: $schema=...`)."""
    whole = copy.deepcopy(_adapter(cls).json_schema())
    definitions = whole.pop("$defs", {})
    _put_defaults(whole, cls, cls, definitions)
    return whole | ({"$defs": definitions} if definitions else {})


@dataclasses.dataclass(frozen=True)
class FieldHelp:
    """One line of `--help`: a setting's dotted name, kind, default (None: required) and documentation."""

    name: str
    kind: str
    default: str | None
    text: str


def describe(cls: type, prefix: str = "", owner: Any = None) -> list[FieldHelp]:
    """Every setting of a class with its kind, default and documentation; groups are expanded.

    `owner` is an object whose values are the defaults, such as a stage's own defaults for a group.
    """
    owner = cls if owner is None else owner
    texts, lines = _texts(cls), []
    for field in dataclasses.fields(cls):
        kind = _hints(cls)[field.name]
        group = _settings_class(kind)
        default = _default_of(owner, field)
        if group and default is not None:
            lines += describe(group, f"{prefix}{field.name}.", default if isinstance(default, group) else None)
        else:
            text = " ".join(texts.get(field.name, "").split())
            lines.append(FieldHelp(prefix + field.name, _kind_name(kind), _default_text(default), text))
    return lines


def _put_defaults(schema: dict[str, Any], cls: type, owner: Any, definitions: dict[str, Any]) -> None:
    """Write a stage's own defaults into copies of its groups' schemas."""
    for field in dataclasses.fields(cls):
        entry, group = schema["properties"][field.name], _settings_class(_hints(cls)[field.name])
        entry["description"] = _texts(cls).get(field.name, "")
        default = _default_of(owner, field)
        if group and isinstance(default, group):
            own = copy.deepcopy(definitions[group.__name__])
            _put_defaults(own, group, default, definitions)
            schema["properties"][field.name] = own | {"description": entry["description"]}
        elif default is not dataclasses.MISSING:
            entry["default"] = to_dict(default)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read_recipe(
    file: Path, chain: tuple[Path, ...] = (), most: int = MAX_VALUES
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a recipe merged over its `base:` recipes, and the file each dotted key came from.

    `most` limits the number of values in all files together.
    """
    try:
        resolved = file.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symlinks, an impossible name
        raise ConfigError(f"{_short(str(file))}: cannot be read as a recipe: {_short(str(error))}") from None
    if resolved in chain:
        raise ConfigError(
            f"{file}: `base:` leads back to itself: {' -> '.join(str(path.name) for path in (*chain, resolved))}"
        )
    if len(chain) >= _LONGEST_CHAIN:
        raise ConfigError(f"{file}: more than {_LONGEST_CHAIN} recipes, each the `base:` of the one before")
    try:
        content = read_markup(file, most)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a recipe: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    most -= count_values(content)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected `setting: value` lines, got a {type(content).__name__}")
    base = content.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{file}: `base:` names another recipe by its path, not by {_short(base)}")
    values, origin = _read_recipe(file.parent / str(base), (*chain, resolved), most) if base is not None else ({}, {})
    _merge(values, content, origin, str(file))
    return values, origin


def _merge(into: dict[str, Any], new: dict[str, Any], origin: dict[str, str], where: str, prefix: str = "") -> None:
    for key, value in new.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, origin, where, f"{name}.")
        else:
            into[key] = value
            origin[name] = where


def _apply_overrides(cls: type, values: dict[str, Any], origin: dict[str, str], overrides: Sequence[str]) -> list[str]:
    faults = []
    for word in overrides:
        name, equals, text = word.partition("=")
        if not equals or not name:
            faults.append(f"{word}: expected `setting=value`")
            continue
        try:
            value = parse_markup(text) if text else ""
        except yaml.YAMLError:
            value = text
        node, *path = values, *name.split(".")
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node.get(part, {}), dict) else node
        kind = _kind_at(cls, path)
        if isinstance(value, str) and _is_list(kind):
            value = [value]
        node[path[-1]] = value
        origin[name] = word
    return faults


def _derive(cls: type, values: dict[str, Any]) -> list[str]:
    """Fill in the defaults that follow from the given values."""
    if not hasattr(cls, "derived"):
        return []
    try:
        _fill(values, cls.derived(values))
    except ValueError as error:
        return [str(error)]
    return []


def _fill_groups(cls: type, values: dict[str, Any], owner: Any) -> None:
    """Complete a partly given group with the stage's own defaults: `optimizer.beta2=0.99` keeps its learning rate.

    `owner` holds the defaults: the class itself, or the group object that a stage has as its default.
    """
    for field in dataclasses.fields(cls):
        group = _settings_class(_hints(cls)[field.name])
        given, default = values.get(field.name), _default_of(owner, field)
        if group is None or not isinstance(given, dict) or not isinstance(default, group):
            continue
        _fill_groups(group, given, default)
        for inner in dataclasses.fields(group):
            given.setdefault(inner.name, copy.copy(getattr(default, inner.name)))


def _fill(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(values.get(name, {}), dict):
            _fill(values.setdefault(name, {}), default)
        else:
            values.setdefault(name, default)


# ---- errors ----------------------------------------------------------------------------------------------------------


def _unknown_keys(cls: type, values: dict[str, Any], origin: dict[str, str]) -> list[str]:
    """Remove unknown keys; an error for each with its new name, or the nearest known one."""
    return _unknown_in(cls, values, origin, renamed.SETTINGS.get(cls.__name__, {}), "")


def _unknown_in(
    cls: type, values: dict[str, Any], origin: dict[str, str], old_names: dict[str, str], prefix: str
) -> list[str]:
    known = {field.name: _settings_class(_hints(cls)[field.name]) for field in dataclasses.fields(cls)}
    faults = []
    for key in list(values):
        name = f"{prefix}{key}"
        if name in old_names:
            faults.append(f"{_where(name, origin)}`{name}` is now `{old_names[name]}`")
            del values[key]
        elif key not in known and (inner := _renamed_below(values[key], old_names, f"{name}.")):
            faults += [f"{_where(old, origin)}`{old}` is now `{old_names[old]}`" for old in inner]
            del values[key]
        elif key not in known:
            hint = _did_you_mean(cls, str(key)[:60], prefix) if len(faults) < _MAX_FAULTS_SHOWN else ""
            faults.append(f"{_where(name, origin)}no setting `{name[:100]}`{hint}")
            del values[key]
        elif (group := known[key]) and isinstance(values[key], dict):
            faults += _unknown_in(group, values[key], origin, old_names, f"{name}.")
    return faults


def _renamed_below(values: object, old_names: dict[str, str], prefix: str) -> list[str]:
    """The renamed settings that are given under a group that no longer exists."""
    names = [f"{prefix}{key}" for key in values] if isinstance(values, dict) else []
    return [old for old in old_names if any(old == name or old.startswith(f"{name}.") for name in names)]


def _did_you_mean(cls: type, key: str, prefix: str) -> str:
    names = [field.name for field in dataclasses.fields(cls)]
    groups = {name: _settings_class(_hints(cls)[name]) for name in names}
    inner = [f"{name}.{key}" for name, group in groups.items() if group and key in _hints(group)]
    other = [name for name in [renamed.ELSEWHERE.get(key, "")] if _kind_at(cls, name.split("."))]
    nearest = other or inner or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean `{prefix}{nearest[0]}`?" if nearest else f"; known here: {', '.join(names)}"


def _validation_faults(error: ValidationError, origin: dict[str, str]) -> list[str]:
    faults = []
    for fault in error.errors():
        parts = [str(part) for part in fault["loc"] if not re.match(r"^(function-|list\[|dict\[|nullable)", str(part))]
        name = ".".join(parts)
        if fault["type"] == "missing":
            faults.append(f"`{name}` is required and was not given")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        got = "" if fault["type"] in ("value_error", "dataclass_type") else f" (got {_short(fault['input'])})"
        where = _where(name, origin)
        faults.append(f"{where}`{name}`: {message}{got}" if name else f"{message}")
    return faults


def _where(name: str, origin: dict[str, str]) -> str:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if place := origin.get(".".join(parts[:length])):
            return f"{place}: "
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _report(cls: type, faults: list[str]) -> str:
    count = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
    more = [f"and {len(faults) - _MAX_FAULTS_SHOWN} more"] if len(faults) > _MAX_FAULTS_SHOWN else []
    shown = (f"  {fault}" for fault in (*faults[:_MAX_FAULTS_SHOWN], *more))
    return "\n".join([f"{count} in the {cls.__name__.removesuffix('Settings').lower()} settings", *shown])


# ---- fields and types of a settings class ----------------------------------------------------------------------------


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _texts(cls: type) -> dict[str, str]:
    """The documentation of each setting, inherited ones too (pydantic leaves those out)."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            properties = _adapter(base).json_schema().get("properties", {})
            texts |= {name: schema["description"] for name, schema in properties.items() if "description" in schema}
    return texts


def _settings_class(kind: Any) -> type | None:
    """The settings class behind an annotation (`Optimizer` or `Optimizer | None`), if it is one."""
    options = (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def _kind_at(cls: type, path: Sequence[str]) -> Any:
    group: type | None = cls
    for part in path[:-1]:
        group = _settings_class(_hints(group).get(part)) if group else None
    return _hints(group).get(path[-1]) if group else None


def _is_list(kind: Any) -> bool:
    """Whether an annotation is `list[...]` or `list[...] | None`."""
    return any(typing.get_origin(option) is list for option in (kind, *typing.get_args(kind)))


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(str(option) for option in typing.get_args(kind))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join("none" if option is type(None) else _kind_name(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list of {_kind_name(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return f"{_kind_name(typing.get_args(kind)[1])} by name"
    return {"str": "text", "bool": "true|false", "int": "int", "float": "float", "Path": "path"}.get(
        getattr(kind, "__name__", str(kind)), getattr(kind, "__name__", str(kind))
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING


def _default_of(owner: Any, field: dataclasses.Field[Any]) -> Any:
    """A field's default: what the object holds, or what the class declares."""
    return _default(field) if isinstance(owner, type) else getattr(owner, field.name)


def _default_text(value: Any) -> str | None:
    if value is dataclasses.MISSING:
        return None
    return "none" if value is None else str(to_dict(value))
