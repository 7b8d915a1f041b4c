"""The keys that clients must send: read from a file, and such as a header can hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from herd.endpoint import fits_header
from herd.errors import ConfigError, DataError
from herd.markup import read_markup


def read_keys(path: Path) -> dict[str, str]:
    """The keys by their owners' names.

    Raises:
        DataError: the file is not there, or not a YAML mapping of names to keys.
    """
    try:
        values = read_markup(path)
    except OSError as error:
        raise DataError(f"keys: {path} cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"keys: {path} is not YAML: {' '.join(str(error).split())}") from None
    is_right = isinstance(values, dict) and all(isinstance(w, str) and w for pair in values.items() for w in pair)
    if not is_right or not values:
        raise DataError(f"keys: {path} must hold lines of `name: key`, both of them text")
    if len(set(values.values())) < len(values):
        raise DataError(f"keys: {path} gives one key to two names")
    return values


def check_keys(keys: Mapping[str, str]) -> None:
    """Refuse keys that no client could send in a header."""
    for name, key in keys.items():
        if not fits_header(key):
            raise ConfigError(f"the key of {name} begins or ends with a space, or holds a line break: no header may")
