"""What the documentation names must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks import summary

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_NAMED = re.compile(r"`((?:herd|recipes|benchmarks|tests|docs)/[\w./-]*)(?::(\w+(?:\.\w+)*))?`")

STILL_WIDE = {"evaluation.md": 5, "log.md": 10, "paper.md": 19, "serving.md": 19, "training.md": 4, "tuning.md": 8}
"""Pages with longer rows in their tables, and how many they may have: fewer, never more."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_that_a_page_names_exists(page):
    for path, name in _NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
        if name:
            assert name.split(".")[0] in _definitions(ROOT / path), f"{page.name} names {path}:{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_has_more_than_200_characters(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > 200]
    rows = [number for number in long if lines[number - 1].startswith("|")]
    assert [number for number in long if number not in rows] == []
    assert len(rows) <= STILL_WIDE.get(page.name, 0), f"rows of a table that are too long: {rows}; a list says the same"


def test_every_room_has_its_line_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = sorted(item.parent.name for item in (ROOT / "herd").glob("*/__init__.py"))
    assert [room for room in rooms if f" {room}/" not in readme] == []


def test_the_readmes_table_is_made_from_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made = f"{summary.BEGIN}\n{summary.table()}\n{summary.END}"
    assert made in readme, "python -m benchmarks.summary --write"


def _definitions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
