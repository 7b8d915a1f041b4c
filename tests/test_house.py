from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "herd"
FILES = sorted(HOUSE.rglob("*.py"))
ROOMS = sorted(path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
FRONT = {"__init__", "__main__"}  # the way in, no room
STILL_LONG = {}
"""What is over the limits and being cut; none is added, and none grows."""


def test_no_file_has_more_than_450_lines():
    lines = {str(file.relative_to(HOUSE)): len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > STILL_LONG.get(name, 450)} == {}


def test_no_function_has_more_than_80_lines():
    long = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, lines = f"{file.relative_to(HOUSE)}:{node.name}", node.end_lineno - node.lineno + 1
                if lines > STILL_LONG.get(name, 80):
                    long[name] = lines
    assert long == {}


def drawn(page: str) -> str:
    """The trees and pictures of a page: what is fenced or set in."""
    text = (ROOT / page).read_text("utf-8")
    fenced = re.findall(r"^```$.*?^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"^    .*$", text, re.MULTILINE)])


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_room_stands_in_the_tree(page):
    named = set(re.findall(r"[a-z_]+", drawn(page)))
    assert [room for room in ROOMS if room not in FRONT | named] == []


def test_the_tree_of_the_readme_names_no_room_that_is_not_there():
    tree = re.search(r"^    herd/\n((?:      .*\n)+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)[1]
    named = [name for line in tree.splitlines() for name in re.findall(r"([a-z_]+)(?:/  |\.py)", line)]
    assert [name for name in named if name not in ROOMS] == []
