"""YAML for recipes, keys and rubrics, parsed with limits on size and depth.

A few nested aliases can expand to billions of values, and a few thousand brackets can overflow the stack. Any text is
parsed within about a second or refused with `yaml.YAMLError`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 300_000
"""Largest settings file; this many bytes take half a second to parse, whatever they hold."""
MAX_VALUES = 10_000
"""Most values in a file, or in a recipe with its bases, aliases and merges expanded; this many take a second."""
_MAX_DEPTH = 50
_MAX_NUMBER = 2**63  # beyond a signed 64-bit integer


def read_markup(path: Path, most: int = MAX_VALUES) -> Any:
    """The content of a YAML file of at most `most` values.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large.
        UnicodeDecodeError: it is not UTF-8.
        yaml.YAMLError: it is not valid YAML, or exceeds the limits.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"{path} has more than {MAX_BYTES:,} bytes")
    return parse_markup(content.decode("utf-8"), most)


def parse_markup(text: str, most: int = MAX_VALUES) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is not valid YAML, or exceeds the limits.
    """
    try:
        loader = _Loader(text)
        loader.most = most
        return loader.get_single_data()
    except yaml.YAMLError as error:  # it may hold a megabyte of the text
        raise yaml.YAMLError(shortened(" ".join(str(error).split()), 300)) from None
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # from a number, a date or a boolean
        raise yaml.YAMLError(f"a value is not what its tag says: {shortened(str(error), 100)}") from None


def shortened(text: str, most: int) -> str:
    """A text cut to at most `most` characters: of a longer one the beginning and the end."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[len(text) - most // 2 + 5 :]}"


def count_values(value: Any) -> int:
    """The number of values in nested dictionaries and lists."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + sum(map(count_values, inner))


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, `no` is a string and `none` (as `--help` prints it) is null."""

    most = MAX_VALUES

    def get_single_node(self) -> Any:
        """The document's tree, after its expanded size was checked."""
        node = super().get_single_node()
        if node is not None:
            _count(node, {}, 1, self.most)
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One value; refused if nested too deeply for later code."""
        self.depth = getattr(self, "depth", 0) + 1
        self.values = getattr(self, "values", 0) + 1
        if self.values > self.most:
            raise yaml.YAMLError(f"more than {self.most:,} values")
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """An integer of at most 64 bits."""
        number = self.construct_yaml_int(node) if len(node.value) <= 100 else _MAX_NUMBER
        if abs(number) >= _MAX_NUMBER:
            raise yaml.YAMLError(f"a whole number of {len(node.value)} digits, beyond 2^63")
        return number


def _count(node: yaml.Node, sizes: dict[int, int], depth: int, most: int) -> int:
    """The number of values in a tree with its aliases expanded; each node is visited once."""
    if (known := sizes.get(id(node))) is not None:
        if known < 0:
            raise yaml.YAMLError("an alias that leads back to itself")
        return known
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
    sizes[id(node)] = -1
    items = [] if isinstance(node, yaml.ScalarNode) else node.value
    inner = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
    sizes[id(node)] = size = 1 + sum(_count(part, sizes, depth + 1, most) for part in inner)
    if size > most:
        raise yaml.YAMLError(f"its aliases stand for more than {most:,} values")
    return size


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:none|None)$"), list("nN"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|nan))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)
