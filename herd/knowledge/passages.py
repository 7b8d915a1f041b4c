"""Sections cut into passages: what is found, shown and cited at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from herd.knowledge.sections import Section

MAX_CHARACTERS = 1000
"""Of a passage: some 200 words, what a small encoder reads at once."""
_BREAKS = (re.compile(r"\n[ \t]*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s|(?<=[。！？])"), re.compile(r"\s"))


class Passage(NamedTuple):
    """A piece of a section."""

    heading: str
    place: str
    text: str


def passages_of(sections: Iterable[Section], most: int = MAX_CHARACTERS) -> Iterator[Passage]:
    """Cut sections at the end of a paragraph, else a line, a sentence, a word; none runs over two sections."""
    for section in sections:
        text = section.text if section.text.strip() else section.heading.rpartition(" > ")[2]
        at = 0
        while at < len(text):
            end = len(text) if len(text) - at <= most else _cut(text, at, most)
            piece = text[at:end]
            if body := piece.strip():
                line = section.line + text.count("\n", 0, at + len(piece) - len(piece.lstrip()))
                yield Passage(section.heading, f"line {line}" if section.line else section.place, body)
            at = end


def _cut(text: str, at: int, most: int) -> int:
    """Where a passage that begins at `at` ends: at the last break of the strongest kind in its second half."""
    for kind in _BREAKS:
        ends = [found.end() for found in kind.finditer(text, at + most // 2, at + most)]
        if ends:
            return ends[-1]
    return at + most
