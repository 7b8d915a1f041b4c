"""YAML as recipes, keys and rubrics are written in it, read within bounds: what a file of a kilobyte may become.

A few nested aliases stand for billions of values, a few thousand brackets for a stack that overflows. Whatever a text
holds, it is read in a moment or refused with `yaml.YAMLError`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 300_000
"""Of a file of settings: so many take half a second, whatever stands in them."""
MAX_VALUES = 10_000
"""Of a file, or of recipes on top of one another, with aliases and merges written out: so many take a second."""
_MAX_DEPTH = 50
_MAX_NUMBER = 2**63  # what an integer of a machine holds


def read_markup(path: Path, most: int = MAX_VALUES) -> Any:
    """The content of a YAML file of at most `most` values.

    Raises:
        OSError: it cannot be read, is no plain file, or is too large.
        UnicodeDecodeError: it is no UTF-8.
        yaml.YAMLError: it is no YAML, or stands for more than settings can be.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no plain file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"{path} has more than {MAX_BYTES:,} bytes")
    return parse_markup(content.decode("utf-8"), most)


def parse_markup(text: str, most: int = MAX_VALUES) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is no YAML, or stands for more than settings can be.
    """
    try:
        loader = _Loader(text)
        loader.most = most
        return loader.get_single_data()
    except yaml.YAMLError as error:  # it may hold a megabyte of the text
        raise yaml.YAMLError(shortened(" ".join(str(error).split()), 300)) from None
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # of a number, a date, a word for true
        raise yaml.YAMLError(f"a value is not what its tag says: {shortened(str(error), 100)}") from None


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters: beginning and end of one that is longer."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[len(text) - most // 2 + 5 :]}"


def count_values(value: Any) -> int:
    """The number of values in nested dictionaries and lists."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + sum(map(count_values, inner))


class _Loader(yaml.SafeLoader):
    """YAML where `1e-3` is a number, `no` is a word and `none` (as `--help` prints it) is nothing."""

    most = MAX_VALUES

    def get_single_node(self) -> Any:
        """The document's tree, once it is known how much it stands for."""
        node = super().get_single_node()
        if node is not None:
            _count(node, {}, 1, self.most)
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One value, refused where it is nested too deeply for later readers."""
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
        """An integer that a machine can hold."""
        number = self.construct_yaml_int(node) if len(node.value) <= 100 else _MAX_NUMBER
        if abs(number) >= _MAX_NUMBER:
            raise yaml.YAMLError(f"a whole number of {len(node.value)} digits, beyond 2^63")
        return number


def _count(node: yaml.Node, sizes: dict[int, int], depth: int, most: int) -> int:
    """How many values a tree stands for with its aliases written out; each node is counted once."""
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
