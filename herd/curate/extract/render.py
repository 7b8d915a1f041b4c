"""An HTML tree to plain text: paragraphs, code with its exact indentation, formulas as TeX, tables as tabbed lines.

No markdown markers are made: markdown hurt a model trained mainly on web text (the Llama 3 paper, section 3.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import cast

from selectolax.lexbor import LexborNode

from herd.curate.extract.maths import is_tex, math_to_tex

SKIPPED = {"script", "style", "noscript", "template", "iframe", "svg", "head", "title", "button", "select", "option"}
SKIPPED |= {"textarea", "input", "object", "embed", "audio", "video", "canvas", "map", "datalist", "dialog", "-comment"}
SKIPPED |= {"meta", "link", "base", "!doctype", "frame", "frameset", "noframes", "applet", "-document-type", "area"}
_PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "table", "ul", "ol", "dl", "section", "article"}
_PARAGRAPHS |= {"figure", "hr", "details", "pre", "main", "header", "footer", "fieldset", "form", "address", "aside"}
_LINES = {
    "div",
    "li",
    "dt",
    "dd",
    "tr",
    "caption",
    "figcaption",
    "summary",
    "legend",
    "center",
    "thead",
    "tbody",
    "nav",
}
_LINES |= {"tfoot", "td", "th", "body", "html", "menu", "hgroup", "optgroup", "ruby", "search", "dir"}
BLOCKS = _PARAGRAPHS | _LINES
_STRUCTURES = {"table", "ul", "ol", "dl", "menu"}
_LAYOUT_CHARACTERS = 1500  # a cell that holds more lays out the page
_LINK_SHARE = 0.6  # of the characters of a list or table of links
_INDENT = "    "
_TEXT_BLOCKS = {"p", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "h4", "h5", "h6"}
_DESCRIPTION_WORDS = 5
_FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|webp|svg|bmp)|\W*", re.I)
_SPACE = re.compile(r"[ \t\n\r\f\v\u200b\u00ad]+")
_RENDERED_MATH = re.compile(r"MathJax(?:_Display|_SVG|_CHTML|_Preview)?\b|mjx-chtml|katex-html|mjx-math|MJX_Assistive")
_CODE_GUTTER = re.compile(
    r"(?:^|[\s_-])(?:linenos?|line-?numbers?(?:-rows)?|gutter|lnt?|copybtn|hljs-ln-numbers|lineno)\b"
)


class Text:
    """Plain text under construction: inline pieces collect into a line, lines into paragraphs."""

    def __init__(self):
        self.lines: list[str] = []
        self.indent = 0
        self.code_lines: list[int] = []  # start, end, start, end...
        self.aside_lines: list[int] = []  # the same of tables and lists
        self.link_lines: list[int] = []  # and of lists that are mostly links
        self._structures: list[tuple[LexborNode, int, bool]] = []  # the outermost open one, where it began, of links
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        """Append inline text as it stands in the page; its white space is collapsed when the line ends."""
        self._pieces.append(piece)

    def end_line(self) -> None:
        """Close the current line, if there is anything on it."""
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        for piece in text.split("\0"):  # a NUL stands for <br>
            line = _SPACE.sub(" ", piece).strip(" ").replace("\xa0", " ").rstrip()
            if line:
                self.lines.append(_INDENT * self.indent + line)
            elif "\0" in text and self.lines and self.lines[-1]:
                self.lines.append("")

    def end_paragraph(self) -> None:
        """Close the current line and leave one empty line after it."""
        self.end_line()
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def add_code(self, code: str) -> None:
        """Append a code block, every character of it kept."""
        self.end_paragraph()
        self.code_lines.append(len(self.lines))
        self.lines.extend(code.split("\n"))
        self.code_lines.append(len(self.lines))
        self.lines.append("")

    def begin_structure(self, node: LexborNode) -> None:
        """A table or list opens: its lines are no running text, unless it only lays out the page."""
        if not self._structures and not _lays_out(node):
            self.end_line()
            self._structures.append((node, len(self.lines), _is_links(node)))

    def end_structure(self, node: LexborNode) -> None:
        """A table or list closes."""
        if self._structures and self._structures[-1][0].mem_id == node.mem_id:
            self.end_line()
            _, start, links = self._structures.pop()
            if len(self.lines) > start:
                (self.link_lines if links else self.aside_lines).extend((start, len(self.lines)))

    def __str__(self) -> str:
        return "\n".join(self.lines).strip("\n")


def render(root: LexborNode, dropped: Collection[int] = frozenset()) -> Text:
    """The text of a tree in reading order, without the subtrees whose `mem_id` is in `dropped`.

    The walk is a loop, not a recursion, so that no depth of nesting can break it.
    """
    text = Text()
    node, depth = root, 0
    while True:
        inside = _enter(node, text, dropped)
        child = node.child if inside else None
        if child is not None:
            node, depth = child, depth + 1
            continue
        if inside:
            _leave(node, text)
        while depth and node.next is None:
            node, depth = cast(LexborNode, node.parent), depth - 1
            _leave(node, text)
        if not depth:
            text.end_line()
            return text
        node = cast(LexborNode, node.next)


def _enter(node: LexborNode, text: Text, dropped: Collection[int]) -> bool:
    """Write what a node opens with; returns whether its children are to be walked."""
    tag = node.tag
    if tag == "-text":
        text.add(node.text_content or "")
        return False
    if tag in SKIPPED:
        if tag == "script":
            _add_math_script(node, text)
        return False
    if dropped and node.mem_id in dropped:
        return False
    if tag == "br":
        text.add("\0")
        return False
    if tag == "img":
        _add_image(node, text)
        return False
    if tag == "math":
        _add_math(node, text)
        return False
    if tag == "pre":
        text.add_code(code_text(node))
        return False
    if tag in BLOCKS:
        return _enter_block(node, tag, text)
    attributes = node.attributes
    name = attributes.get("class")
    if name and ("math" in name.lower() or "katex" in name or "mjx" in name):
        return _enter_math_span(node, name, text)
    return tag != "mjx-container" or _enter_math_span(node, "mjx-container", text)


def _enter_block(node: LexborNode, tag: str, text: Text) -> bool:
    if tag == "tr" and _is_data_row(node):
        text.end_line()
        text.add("\t".join(_cell_text(cell) for cell in _cells(node)).replace("\t", "\xa0\t").replace("\xa0\t", "\t"))
        _end_row(text)
        return False
    if tag in _PARAGRAPHS and tag != "table":
        text.end_paragraph()
    else:
        text.end_line()
    if tag == "table":
        text.end_paragraph()
    if tag in _STRUCTURES:
        text.begin_structure(node)
    if tag == "dd":
        text.indent += 1
    name = node.attributes.get("class") if tag == "div" else None
    if name and ("MathJax" in name or "mjx" in name):
        return _enter_math_span(node, name, text)
    return True


def _leave(node: LexborNode, text: Text) -> None:
    tag = node.tag or ""
    if tag in _STRUCTURES:
        text.end_structure(node)
    if tag in _PARAGRAPHS:
        text.end_paragraph()
    elif tag in _LINES:
        text.end_line()
        if tag == "dd":
            text.indent -= 1


def _lays_out(node: LexborNode) -> bool:
    """Whether a table or list holds whole articles in its cells: then it is no table, only the page's layout."""
    if len(node.text() or "") <= _LAYOUT_CHARACTERS or node.tag == "dl":
        return False
    cells = [len(cell.text() or "") for cell in (node.css("td, th") if node.tag == "table" else node.iter())]
    return sum(size for size in cells if size > _LAYOUT_CHARACTERS) > 0.5 * sum(cells)


def _is_links(node: LexborNode) -> bool:
    characters = len("".join((node.text() or "").split()))
    linked = sum(len("".join((link.text() or "").split())) for link in node.css("a[href]"))
    return linked > _LINK_SHARE * characters


# ---- code ------------------------------------------------------------------------------------------------------------


def code_text(node: LexborNode) -> str:
    """The text of a `pre`, exactly: its line breaks, indentation and spaces; only line numbers are left out."""
    pieces: list[str] = []
    current, depth = node, 0
    while True:
        child = _enter_code(current, pieces)
        if child is not None:
            current, depth = child, depth + 1
            continue
        while depth and current.next is None:
            current, depth = cast(LexborNode, current.parent), depth - 1
            if current.tag in ("div", "li", "tr", "p") and pieces and not pieces[-1].endswith("\n"):
                pieces.append("\n")
        if not depth:
            break
        current = cast(LexborNode, current.next)
    code = "".join(pieces).replace("\r\n", "\n").replace("\xa0", " ").replace("\u200b", "")
    lines = [line.rstrip() for line in code.split("\n")]
    return "\n".join(lines).strip("\n")


def _enter_code(node: LexborNode, pieces: list[str]) -> LexborNode | None:
    tag = node.tag
    if tag == "-text":
        pieces.append(node.text_content or "")
    elif tag == "br":
        pieces.append("\n")
    elif tag in ("button", "script", "style"):
        return None
    else:
        name = node.attributes.get("class")
        if name and _CODE_GUTTER.search(name) and tag != "pre" and not (node.text() or "").strip(" \n\t0123456789"):
            return None
        return node.child
    return None


# ---- formulas and pictures -------------------------------------------------------------------------------------------


def _add_math(node: LexborNode, text: Text) -> None:
    tex = math_to_tex(node)
    if tex:
        display = node.attributes.get("display") == "block"
        text.add(f"$${tex}$$" if display else f"${tex}$")


def _add_math_script(node: LexborNode, text: Text) -> None:
    kind = (node.attributes.get("type") or "").lower()
    if kind.startswith("math/tex"):
        tex = (node.text() or "").strip()
        text.add(f"$${tex}$$" if "mode=display" in kind else f"${tex}$")
    elif kind.startswith("math/mml"):
        from selectolax.lexbor import LexborHTMLParser

        inner = LexborHTMLParser(node.text() or "").css_first("math")
        if inner is not None:
            _add_math(inner, text)


def _enter_math_span(node: LexborNode, name: str, text: Text) -> bool:
    """Formulas that a script has already drawn: take the source that lies beside the drawing, once."""
    if not _RENDERED_MATH.search(name) and node.tag != "mjx-container":
        return True
    source = node.css_first("math")
    if source is not None and "katex-html" not in name:
        _add_math(source, text)
    elif data := node.attributes.get("data-mathml"):
        from selectolax.lexbor import LexborHTMLParser

        inner = LexborHTMLParser(data).css_first("math")
        if inner is not None:
            _add_math(inner, text)
    return False


def _add_image(node: LexborNode, text: Text) -> None:
    attributes = node.attributes
    alt = (attributes.get("alt") or "").strip()
    if not alt:
        return
    if is_tex(alt, attributes.get("class") or "", attributes.get("src") or ""):
        alt = re.sub(r"^(\\\(|\\\[|\$+)\s*|\s*(\\\)|\\\]|\$+)$", "", alt)
        text.add(f"${alt}$")
    elif not _FILE_NAME.fullmatch(alt) and (_stands_in_text(node) or _describes(node, alt)):
        text.add(f" {alt} ")


def _stands_in_text(node: LexborNode) -> bool:
    """Whether a picture is part of a sentence: its paragraph has words of its own."""
    block = node.parent
    while block is not None and block.tag not in BLOCKS:
        block = block.parent
    return block is not None and block.tag in _TEXT_BLOCKS and bool((block.text() or "").strip())


def _describes(node: LexborNode, alt: str) -> bool:
    """Whether a picture that stands alone has a description worth reading; figures have captions, links are cards."""
    if len(alt.split()) < _DESCRIPTION_WORDS:
        return False
    above = node.parent
    for _ in range(4):
        if above is None:
            return True
        if above.tag in ("figure", "a"):
            return False
        above = above.parent
    return True


# ---- tables ----------------------------------------------------------------------------------------------------------


def _cells(row: LexborNode) -> list[LexborNode]:
    return [cell for cell in row.iter() if cell.tag in ("td", "th")]


def _is_data_row(row: LexborNode) -> bool:
    """A row of a table of data, as against one that only lays out the page: short cells without blocks inside."""
    cells = _cells(row)
    if len(cells) < 2:
        return False
    for cell in cells:
        for inner in cell.iter():
            if inner.tag in BLOCKS and inner.tag not in ("p", "div"):
                return False
    return sum(len(cell.text() or "") for cell in cells) <= 2000


def _cell_text(cell: LexborNode) -> str:
    return " ".join(str(render(cell)).split())


def _end_row(text: Text) -> None:
    line = "".join(text._pieces).strip("\n ")
    text._pieces.clear()
    if line.strip():
        text.lines.append(_INDENT * text.indent + line)
