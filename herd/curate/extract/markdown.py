"""Markdown as it is written: its front matter is no text, its code is known as code."""

from __future__ import annotations

import re

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_TITLE = re.compile(r"""^title\s*:\s*["']?(.+?)["']?\s*$""", re.M)
_HEADING = re.compile(r"^#\s+(.+?)\s*#*$", re.M)
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")


def markdown_text(source: str) -> tuple[str, str, list[int]]:
    """Text, title and the lines that are code (start, end, start, end...) of a Markdown file."""
    source = source.replace("\r\n", "\n")
    front = _FRONT.match(source)
    text = source[front.end() :].strip("\n") if front else source
    title = (_TITLE.search(front[1]) if front else None) or _HEADING.search(text)
    return text, title[1] if title else "", fenced_lines(text)


def fenced_lines(text: str) -> list[int]:
    """The lines of fenced code blocks, their fences included: start, end (exclusive), start, end..."""
    found: list[int] = []
    mark = ""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence and not mark:
            mark = fence[1]
            found.append(number)
        elif fence and fence[1].startswith(mark) and not line.strip().strip(mark[0]):
            found.append(number + 1)
            mark = ""
    return [*found, len(lines)] if mark else found
