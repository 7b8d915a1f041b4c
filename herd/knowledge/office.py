"""docx, pptx and xlsx: the XML of their zip archive, read within bounds; what is no text (pictures, charts) stays out.

Source: ECMA-376 (Office Open XML), parts 1 for the names of the elements.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree

MAX_PART_BYTES = 30_000_000
MAX_BYTES = 100_000_000
"""Of one archive, unpacked: a few kilobytes may stand for gigabytes."""
MAX_PARTS = 5_000
Part = tuple[str, str, str]
"""Heading, text, place."""

_SLIDE = re.compile(r"ppt/slides/slide(\d+)\.xml")
_HEADING_STYLE = re.compile(r"(?:heading|berschrift|titre|t[íi]tulo)\D*(\d)|^(title)$", re.I)
_SHARED = "xl/sharedStrings.xml"


class _Refused(Exception):
    pass


class _Archive:
    """A zip archive of which no more is unpacked than is allowed."""

    def __init__(self, content: bytes) -> None:
        self.zip = zipfile.ZipFile(io.BytesIO(content))
        self.left = MAX_BYTES
        self.names = [info.filename for info in self.zip.infolist()]
        if len(self.names) > MAX_PARTS:
            raise _Refused(f"an archive of {len(self.names):,} files, at most {MAX_PARTS:,} are read")

    def xml(self, name: str) -> ElementTree.Element:
        most = min(MAX_PART_BYTES, self.left)
        with self.zip.open(name) as file:
            found = file.read(most + 1)
        if len(found) > most:
            raise _Refused(f"{name} unpacks to more than {most:,} bytes")
        self.left -= len(found)
        if b"<!DOCTYPE" in found or b"<!ENTITY" in found or b"\0" in found[:200]:
            raise _Refused(f"{name} declares entities or is no UTF-8; no Office program writes that")
        return ElementTree.fromstring(found)


_OF_ARCHIVES = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, OSError)
_DAMAGES = (*_OF_ARCHIVES, ElementTree.ParseError, ValueError, IndexError)


def office_parts(suffix: str, content: bytes) -> tuple[list[Part], tuple[str, str] | None]:
    """The parts of a document, a slide show or a workbook, or why there are none: reason and detail."""
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        return [], ("encrypted", "protected by a password, or of the format before 2007")
    try:
        parts = list(OFFICE[suffix](_Archive(content)))
    except _Refused as fault:
        return [], ("too large", str(fault))
    except _DAMAGES as fault:
        return [], ("damaged", f"{type(fault).__name__}: {str(fault)[:100]}")
    return parts, None if parts else ("no text", "holds no text")


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ElementTree.Element) -> str:
    """The text of a paragraph: its runs, tabs and breaks."""
    pieces = []
    for inner in element.iter():
        name = _name(inner)
        if name == "t":
            pieces.append(inner.text or "")
        elif name in ("tab", "br"):
            pieces.append("\t" if name == "tab" else "\n")
    return "".join(pieces).strip()


def _style(paragraph: ElementTree.Element) -> str:
    for inner in paragraph.iter():
        if _name(inner) == "pStyle":
            return next((value for key, value in inner.attrib.items() if key.endswith("val")), "")
    return ""


def _document(archive: _Archive) -> Iterator[Part]:
    above: list[tuple[int, str]] = []
    lines: list[str] = []
    start = 1

    def part() -> Iterator[Part]:
        if lines:
            yield " > ".join(title for _, title in above), "\n\n".join(lines), f"paragraph {start}"
            lines.clear()

    paragraphs = (one for one in archive.xml("word/document.xml").iter() if _name(one) == "p")
    for number, paragraph in enumerate(paragraphs, 1):
        if not (text := _text(paragraph)):
            continue
        if found := _HEADING_STYLE.search(_style(paragraph)):
            yield from part()
            level = int(found[1] or 0)
            above = [one for one in above if one[0] < level] + [(level, text[:120])]
            lines, start = [], number
        else:
            start = start if lines else number
            lines.append(text)
    yield from part()


def _slides(archive: _Archive) -> Iterator[Part]:
    numbers = sorted(int(found[1]) for name in archive.names if (found := _SLIDE.fullmatch(name)))
    for number in numbers:
        root = archive.xml(f"ppt/slides/slide{number}.xml")
        lines = [text for one in root.iter() if _name(one) == "p" and (text := _text(one))]
        if lines:
            yield lines[0][:120], "\n".join(lines), f"slide {number}"


def _workbook(archive: _Archive) -> Iterator[Part]:
    shared = []
    if _SHARED in archive.names:
        shared = [_text(one) for one in archive.xml(_SHARED) if _name(one) == "si"]
    links = {one.attrib["Id"]: one.attrib["Target"] for one in archive.xml("xl/_rels/workbook.xml.rels")}
    for sheet in (one for one in archive.xml("xl/workbook.xml").iter() if _name(one) == "sheet"):
        link = next(value for key, value in sheet.attrib.items() if key.endswith("}id"))
        target = links[link].lstrip("/")
        root = archive.xml(target if target.startswith("xl/") else f"xl/{target}")
        names: dict[str, str] = {}
        for row in (one for one in root.iter() if _name(one) == "row"):
            cells = {re.sub(r"\d", "", cell.get("r", "")): _cell(cell, shared) for cell in row if _name(cell) == "c"}
            cells = {column: text for column, text in cells.items() if text}
            if cells:
                text = "\n".join(f"{names[at]}: {text}" if at in names else text for at, text in cells.items())
                yield sheet.get("name", ""), text, f"sheet {sheet.get('name', '')}, row {row.get('r', '?')}"
            names = names or cells


def _cell(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _text(cell)
    value = next((one.text or "" for one in cell if _name(one) == "v"), "")
    return shared[int(value)] if cell.get("t") == "s" and value else value


OFFICE = {".docx": _document, ".pptx": _slides, ".xlsx": _workbook}
"""How each ending is read."""
