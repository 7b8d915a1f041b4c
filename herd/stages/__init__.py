"""The commands: one short file each, with a settings class and `run(settings)`; none imports another.

The command line and stories, which run other commands, look them up by name here.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from herd.errors import ConfigError


def stage(command: str) -> ModuleType:
    """The module of a command: `pack`, or `guard train` of a family."""
    return importlib.import_module(".".join([__name__, *command.split()]))


def settings_of(command: str) -> type:
    """The settings class of a command."""
    return typing.get_type_hints(stage(command).run)["settings"]


def find(command: str) -> tuple[type, Callable[[Any], Any]]:
    """The settings class and the `run` of a command by its name.

    Raises:
        ConfigError: there is no such command.
    """
    known = sorted(_names())
    module = stage(command) if command in known else None
    if module is None or not hasattr(module, "run"):
        nearest = difflib.get_close_matches(command, known, n=1)
        raise ConfigError(
            f"no command `{command}`"
            + (f"; did you mean `{nearest[0]}`?" if nearest else f"; there are: {', '.join(known)}")
        )
    return settings_of(command), module.run


def _names() -> Iterator[str]:
    for one in pkgutil.iter_modules(__path__):
        yield one.name
        if one.ispkg:
            folders = [str(Path(folder, one.name)) for folder in __path__]
            yield from (f"{one.name} {member.name}" for member in pkgutil.iter_modules(folders))
