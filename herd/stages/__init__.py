"""The commands: one short file each, a settings class and `run(settings)`; none imports another.

What runs or plans other commands (the command line, a story) asks for them by name, here.
"""

from __future__ import annotations

import importlib
import typing
from types import ModuleType


def stage(command: str) -> ModuleType:
    """The module of a command: `pack`, or `guard train` of a family."""
    return importlib.import_module(".".join([__name__, *command.split()]))


def settings_of(command: str) -> type:
    """The settings class of a command."""
    return typing.get_type_hints(stage(command).run)["settings"]
