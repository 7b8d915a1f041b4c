"""A file as sections: each with its heading, its text, and the place where a reader finds it again."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from selectolax.lexbor import LexborHTMLParser

from herd.curate.extract.html import extract
from herd.curate.extract.markdown import fenced_lines
from herd.curate.extract.part import time_limit
from herd.curate.extract.pdf import pdf_pages
from herd.curate.read.encoding import decode
from herd.curate.read.kinds import kind_of_name, sniff
from herd.curate.read.pages import RawPage, read_pages
from herd.knowledge.office import OFFICE, office_parts

MAX_SECONDS = 60.0
"""Of the processor for one file."""
MAX_JSON_BYTES = 20_000_000
CRAWLS = (".warc", ".warc.gz", ".warc.zst")
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*$")
_UNDERLINES = {"=": 1, "-": 2, "~": 3, "^": 4, '"': 4}
_DEFINITION = re.compile(
    r"( {0,4}|\t)(?:export |public |private |static |pub |async |abstract |final )*"
    r"(?:def|class|func|function|fn|struct|interface|trait|impl|enum|type|module|namespace)\s+\w.*"
)
_MAX_HEADING = 120


class Section(NamedTuple):
    """A part of a file under one heading."""

    heading: str  # with those above it: `Guide > Install`
    text: str
    place: str = ""  # `page 3`, `slide 2`, `row 7`, `#install`
    line: int = 0  # of the file, from 1, where the text begins; 0 where lines mean nothing


Problem = tuple[str, str]
"""Why nothing was read: reason and detail."""


def read_sections(name: str, content: bytes) -> tuple[list[Section], Problem | None]:
    """The sections of a file, or why there are none; never raises for any content."""
    suffix = PurePosixPath(name).suffix.lower()
    try:
        with time_limit(MAX_SECONDS):
            if suffix in OFFICE:
                parts, problem = office_parts(suffix, content)
                return [Section(*part) for part in parts], problem
            return _read(suffix, name, content)
    except TimeoutError:
        return [], ("too slow", f"took more than {MAX_SECONDS:.0f} s")
    except (ValueError, RecursionError, csv.Error, MemoryError) as fault:
        return [], ("damaged", f"{type(fault).__name__}: {str(fault)[:100]}")


def _read(suffix: str, name: str, content: bytes) -> tuple[list[Section], Problem | None]:
    begins = sniff(content)
    if begins == "pdf":
        pages, problem = pdf_pages(content)
        found = [Section("", page.strip(), f"page {number}") for number, page in enumerate(pages, 1) if page.strip()]
        return found, problem or (None if found else ("no text", "a PDF of pictures"))
    if begins == "binary" or (b"\0" in content[:4096] and not content.startswith((b"\xff\xfe", b"\xfe\xff"))):
        return [], ("kind not read", "a binary file")
    if suffix in _ROWS:
        if suffix == ".json" and len(content) > MAX_JSON_BYTES:
            return [], ("too large", f"JSON of more than {MAX_JSON_BYTES:,} bytes")
        return list(_ROWS[suffix](decode(content)[0])), None
    kind = kind_of_name(name) or {"html": "html", "feed": "feed", "text": "text", "script": "code"}.get(begins)
    if kind is None:
        return [], ("kind not read", suffix or "no ending, and no plain text")
    if kind in ("html", "feed", "latex"):
        return _page(content, kind)
    source = decode(content)[0].replace("\r\n", "\n")
    return list(_under_headings(source, _headings(source, kind, suffix))), None


def crawl_sections(path: Path) -> tuple[list[Section], Counter[str]]:
    """The sections of every page in a WARC file, placed by its address, and how many records gave none, and why."""
    found: list[Section] = []
    counts: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for page in read_pages(path, counts):
        sections, problem = _crawled(page)
        if problem or not sections:
            left[problem[0] if problem else "no text"] += 1
        found += [section._replace(place=page.url + section.place, line=0) for section in sections]
    left["damaged"] += counts["corrupt"]
    left["not a page"] += sum(count for name, count in counts.items() if name.startswith("not a"))
    return found, +left


def _crawled(page: RawPage) -> tuple[list[Section], Problem | None]:
    """One page, within the time of a file."""
    try:
        with time_limit(MAX_SECONDS):
            if page.kind in ("html", "feed", "latex"):
                return _page(page.content, page.kind)
            if page.kind == "pdf":
                return _read(".pdf", page.url, page.content)
            source = decode(page.content, page.charset)[0].replace("\r\n", "\n")
            return list(_under_headings(source, _headings(source, page.kind, ""))), None
    except TimeoutError:
        return [], ("too slow", f"took more than {MAX_SECONDS:.0f} s")
    except (ValueError, RecursionError, MemoryError) as fault:
        return [], ("damaged", f"{type(fault).__name__}: {str(fault)[:100]}")


def _page(content: bytes, kind: str) -> tuple[list[Section], Problem | None]:
    page = extract(content, kind=kind)
    if page.problem:
        return [], page.problem
    trail = _Trail()
    text: list[str] = []
    found, place, ahead = [], "", _page_headings(decode(content)[0]) if kind == "html" else []

    def end(next_level: int) -> None:
        if (body := "\n".join(text).strip("\n")) or trail.ends_before(next_level):
            found.append(Section(str(trail) or page.title, body, place))
        text.clear()

    for line in page.text.split("\n"):
        plain = " ".join(line.split()).rstrip("¶# ")
        at = next((at for at, heading in enumerate(ahead) if heading[1] == plain), None) if plain else None
        if at is None:
            text.append(line)
            continue
        level, title, anchor = ahead[at]
        end(level)
        ahead = ahead[at + 1 :]
        trail.enter(level, title)
        place = f"#{anchor}" if anchor else ""
    end(0)
    return found, None


def _page_headings(source: str) -> list[tuple[int, str, str]]:
    """Level, text and anchor of every heading of a page, in order."""
    found = []
    for node in LexborHTMLParser(source).css("h1, h2, h3, h4, h5, h6"):
        title = " ".join(node.text().split()).rstrip("¶# ")
        anchor = node.attributes.get("id") or (node.parent.attributes.get("id") if node.parent else "") or ""
        found.append((int((node.tag or "h6")[1]), title, anchor))
    return [heading for heading in found if heading[1]]


# ---- lines under headings --------------------------------------------------------------------------------------------


class _Trail:
    """The headings that a line stands under."""

    def __init__(self) -> None:
        self.above: list[tuple[int, str]] = []

    def enter(self, level: int, title: str) -> None:
        self.above = [one for one in self.above if one[0] < level] + [(level, title[:_MAX_HEADING])]

    def ends_before(self, level: int) -> bool:
        """Whether the last heading has none below it, so that it is lost where it has no text either."""
        return bool(self.above) and self.above[-1][0] >= level

    def __str__(self) -> str:
        return " > ".join(title for _, title in self.above)


def _headings(source: str, kind: str, suffix: str) -> Iterator[tuple[int, int, int, str]]:
    """First line, first line of text, level and title of every heading; lines count from 0."""
    lines = source.split("\n")
    if kind == "code":
        for number, line in enumerate(lines):
            if found := _DEFINITION.match(line):
                yield number, number, 2 if found[1] else 1, line.strip().rstrip(":{ ")
        return
    fences = fenced_lines(source) if kind == "markdown" else []
    inside = {line for start, end in zip(fences[::2], fences[1::2]) for line in range(start, end)}
    for number, line in enumerate(lines):
        if number in inside:
            continue
        if kind == "markdown" and (found := _HEADING.match(line)):
            yield number, number + 1, len(found[1]), found[2]
        elif (kind == "markdown" or suffix == ".rst") and number + 1 < len(lines) and _is_underlined(lines, number):
            yield number, number + 2, _UNDERLINES[lines[number + 1][0]], line.strip()


def _is_underlined(lines: list[str], number: int) -> bool:
    title, under = lines[number].strip(), lines[number + 1].rstrip()
    if not title or len(under) < 3 or under[0] not in _UNDERLINES or under.strip(under[0]):
        return False
    return title[0] not in "|>" and title.strip(title[0]) != "" and (number == 0 or not lines[number - 1].strip())


def _under_headings(source: str, headings: Iterable[tuple[int, int, int, str]]) -> Iterator[Section]:
    lines, trail, start = source.split("\n"), _Trail(), 0

    def section(end: int, next_level: int) -> Iterator[Section]:
        text = "\n".join(lines[start:end])
        if text.strip() or trail.ends_before(next_level):
            body = text.strip("\n")
            yield Section(str(trail), body, line=start + 1 + (len(text) - len(text.lstrip("\n"))))

    for first, after, level, title in headings:
        yield from section(first, level)
        trail.enter(level, title)
        start = after
    yield from section(len(lines), 0)


# ---- rows ------------------------------------------------------------------------------------------------------------


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_written(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(source: str) -> Iterator[Section]:
    found = json.loads(source)
    if isinstance(found, dict):
        yield from (Section(str(key)[:_MAX_HEADING], _written(value)) for key, value in found.items())
    elif isinstance(found, list):
        yield from (Section("", _written(value), f"row {number}") for number, value in enumerate(found, 1))
    else:
        yield Section("", _written(found))


def _json_lines(source: str) -> Iterator[Section]:
    for number, line in enumerate(source.split("\n"), 1):
        if line.strip():
            try:
                yield Section("", _written(json.loads(line)), line=number)
            except (ValueError, RecursionError):
                yield Section("", line, line=number)  # found by its words all the same


def _table(delimiter: str) -> Callable[[str], Iterator[Section]]:
    def rows(source: str) -> Iterator[Section]:
        reader = csv.reader(io.StringIO(source), delimiter=delimiter)
        names = next(reader, [])
        if names:
            yield Section("", ", ".join(names), "row 1")
        for number, row in enumerate(reader, 2):
            cells = [f"{name}: {cell}" for name, cell in zip(names, row) if cell.strip()]
            if text := "\n".join([*cells, *row[len(names) :]]):
                yield Section("", text, f"row {number}")

    return rows


_ROWS: dict[str, Callable[[str], Iterator[Section]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}
