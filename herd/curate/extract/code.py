"""Code blocks exactly as they were written: in `pre`, or one row or element a line; without their line numbers."""

from __future__ import annotations

import re
from typing import cast

from selectolax.lexbor import LexborNode

_GUTTER = re.compile(
    r"(?:^|[\s_-])(?:linenos?|line-?numbers?(?:-rows)?|gutter|lnt?|copybtn|hljs-ln-numbers|lineno|prompt)\b"
)
_LINE_NAME = re.compile(r"(?:^|[\s_-])(?:code|src|source|(?:code|view|CodeMirror|token|ace)?-?_?line)(?![a-z])", re.I)
_FRAME_NAME = re.compile(r"code|highlight|hljs|prism|syntax|blob|view-lines|ace_|listing|diff", re.I)
_PRE_SPACE = re.compile(r"white-space\s*:\s*pre\s*(?:;|$|!)", re.I)
_ENDS_LINE = {"div", "li", "tr", "p"}
_BLOCK_STYLE = re.compile(r"display\s*:\s*(?:block|flex|table-row)", re.I)
_NUMBERS = re.compile(r"[\s\d:.|]*")
_MAX_FRAME_CHARACTERS = 400_000
_ONLY_IN_PROSE = "p, ul, ol, h1, h2, h3, h4, table, img, form, section, article, pre"


def verbatim(node: LexborNode, tag: str) -> str | None:
    """The code that an element holds as a block of its own, None where it holds none; "" for a column of line numbers.

    `tag` is the element's; only `pre`, `code`, `table`, `div` and `td` can be code.
    """
    if tag == "pre":
        return "" if _is_gutter(node) else None if "CodeMirror-line" in _name(node) else code_text(node)
    if tag == "code":
        return code_text(node) if _stands_alone(node) else None
    if tag == "table":
        return _code_of_rows(node)
    return _code_of_elements(node) if tag == "div" else None


def code_text(node: LexborNode) -> str:
    """The text of an element, exactly: its line breaks, indentation and spaces; only line numbers are left out."""
    pieces: list[str] = []
    current, depth, after_line = node, 0, False
    while True:
        child = _enter(current, pieces, after_line)
        after_line = False
        if child is not None:
            current, depth = child, depth + 1
            continue
        if depth and child is None and _ends_line(current):
            after_line = _end_line(pieces, current)
        while depth and current.next is None:
            current, depth = cast(LexborNode, current.parent), depth - 1
            if depth and _ends_line(current):
                after_line = _end_line(pieces, current)
        if not depth:
            break
        current = cast(LexborNode, current.next)
    code = "".join(pieces).replace("\r\n", "\n").replace("\xa0", " ").replace("\u200b", "").replace("\ufeff", "")
    return "\n".join(line.rstrip() for line in code.split("\n")).strip("\n")


def _enter(node: LexborNode, pieces: list[str], after_line: bool) -> LexborNode | None:
    tag = node.tag
    if tag == "-text":
        text = node.text_content or ""
        if after_line and not text.strip() and "\n" in text:  # the source's own break between two lines
            text = text.replace("\n", "", 1).strip(" ")
        pieces.append(text)
    elif tag == "br":
        pieces.append("\n")
    elif tag not in ("button", "script", "style", "template"):
        name = _name(node)
        if name and tag != "pre" and _GUTTER.search(name) and _NUMBERS.fullmatch(node.text() or ""):
            return None
        return node.child
    return None


def _ends_line(node: LexborNode) -> bool:
    tag = node.tag
    if tag in _ENDS_LINE:
        return True
    style = node.attributes.get("style") if tag == "span" else None
    return bool(style and _BLOCK_STYLE.search(style))


def _end_line(pieces: list[str], node: LexborNode) -> bool:
    """Break the line where an element ends, once; an empty element is an empty line, a line number is none."""
    if _GUTTER.search(_name(node)):
        return False
    own = node.text() or ""
    has_break = own.endswith("\n") or (node.last_child is not None and _last_tag(node) == "br")
    if not has_break:
        pieces.append("\n")
    return True


def _last_tag(node: LexborNode) -> str:
    last = node
    while last.last_child is not None:
        last = last.last_child
    return last.tag or ""


def _name(node: LexborNode) -> str:
    return node.attributes.get("class") or ""


def _is_gutter(node: LexborNode) -> bool:
    """Whether a `pre` holds only the numbers of the lines of the `pre` beside it."""
    text = (node.text() or "").split()
    if not text or not all(word.strip(".:").isdecimal() for word in text):
        return False
    numbers = [int(word.strip(".:")[:9] or 0) for word in text]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return False
    above: LexborNode | None = node
    for _ in range(4):
        if above is None:
            return False
        if _GUTTER.search(_name(above)):
            return True
        if above.tag in ("td", "th"):
            row = above.parent
            return row is not None and len(row.css("pre")) > 1
        above = above.parent
    return False


def _stands_alone(node: LexborNode) -> bool:
    """Whether a `code` outside of `pre` is a block: more than one line, and nothing beside it."""
    if _PRE_SPACE.search(node.attributes.get("style") or "") and "\n" in (node.text() or "").strip():
        return True
    if node.css_first("br, div") is None:
        return False
    above = node.parent
    return above is None or (above.text() or "").strip() == (node.text() or "").strip()


def _code_of_rows(table: LexborNode) -> str | None:
    """The code of a table that has one line of it a row, with or without a cell for the number."""
    framed = bool(_FRAME_NAME.search(_name(table)))
    lines: list[str] = []
    marked = 0
    for row in table.css("tr"):
        cells = [cell for cell in row.iter() if cell.tag in ("td", "th")]
        if not cells or len(cells) > 4:
            return None
        *numbers, code = cells
        if any(not _NUMBERS.fullmatch(cell.text() or "") for cell in numbers) or code.css_first("p, ul, img, table"):
            return None
        first = code.child
        if code.css_first("pre") is not None and "\n" in (code.text() or "").strip("\n"):
            return None  # the whole code in one cell
        style = code.attributes.get("style") or ""
        only = first.tag if first is not None and first.next is None else ""
        marked += bool(_LINE_NAME.search(_name(code)) or _PRE_SPACE.search(style) or only in ("code", "pre"))
        marked += framed and bool(numbers)
        lines.append(code_text(code))
    return "\n".join(lines).strip("\n") if len(lines) > 1 and marked >= len(lines) else None


def _code_of_elements(frame: LexborNode) -> str | None:
    """The code of an element that holds one element a line, as editors in a page do."""
    attributes = frame.attributes
    if not attributes:
        return None
    name, style = attributes.get("class") or "", attributes.get("style") or ""
    spaced = "white-space" in style and bool(_PRE_SPACE.search(style))
    if not spaced and not (name and _FRAME_NAME.search(name)):
        return None
    if len(frame.text() or "") > _MAX_FRAME_CHARACTERS:
        return None
    if frame.css_first(_ONLY_IN_PROSE) is not None:
        editor = frame.css("pre")
        return _code_of_editor(editor) if editor and all("CodeMirror-line" in _name(line) for line in editor) else None
    if spaced:
        return code_text(frame)
    lines = [child for child in frame.iter() if child.tag != "-text"]
    if len(lines) < 2 or not all(line.tag == "div" and _is_line(line) for line in lines):
        return None
    return code_text(frame)


def _code_of_editor(lines: list[LexborNode]) -> str:
    return "\n".join(code_text(line) for line in lines).strip("\n")


def _is_line(node: LexborNode) -> bool:
    if len(node.css("div")) > 1:  # besides itself
        return False
    first = node.child
    if first is not None and all(child.tag == "code" for child in node.iter()) and first.tag == "code":
        return True
    return bool(_LINE_NAME.search(_name(node)))
