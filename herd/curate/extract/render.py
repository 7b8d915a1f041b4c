"""An HTML tree to plain text: paragraphs, code with its exact indentation, formulas as TeX, tables as tabbed lines.

No markdown markers are made: markdown hurt a model trained mainly on web text (the Llama 3 paper, section 3.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from html import unescape
from typing import cast

from selectolax.lexbor import LexborNode

from herd.curate.extract.code import verbatim
from herd.curate.extract.maths import is_tex, math_to_tex, tex_of_address
from herd.curate.extract.tables import Row, data_row, lays_out, own_cells, rows_of, span

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
_LINES |= {"tfoot", "td", "th", "body", "html", "menu", "hgroup", "optgroup", "search", "dir"}
BLOCKS = _PARAGRAPHS | _LINES
CODE_TAGS = {"pre", "code", "table", "div"}
_STRUCTURES = {"table", "ul", "ol", "dl", "menu"}
_LINK_SHARE = 0.6  # of the characters of a list or table of links
_INDENT = "    "
_TEXT_BLOCKS = {"p", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "h4", "h5", "h6"}
_DESCRIPTION_WORDS = 5
_FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|webp|svg|bmp)|\W*", re.I)
_SPACE = re.compile(r"[ \t\n\r\f\v]+")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # where a word may break, and nothing more
_ENTITY = re.compile(
    r"&(?:nbsp|amp|quot|apos|[lr][sd]quo|[nm]dash|hellip|#\d{2,5}|#x[0-9a-fA-F]{2,4});"
)  # escaped twice
_EXPONENT = re.compile(r"[-+\u2212]?\d{1,4}|[nxkijptNM]|[-\u2212]?\w{1,3}(?:[-+*/\u2212]\w{1,3}){1,3}")
_POWER = re.compile(r"(?:\d|\)|(?<![^\W_])[^\W\d_]{1,2})$")  # what can be raised: a number, a variable, a unit
_RENDERED_MATH = re.compile(r"MathJax(?:_Display|_SVG|_CHTML|_Preview)?\b|mjx-chtml|katex-html|mjx-math|MJX_Assistive")


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
        self.rows: dict[int, Row] = {}  # of tables whose cells span rows

    def add(self, piece: str) -> None:
        """Append inline text as it stands in the page; its white space is collapsed when the line ends."""
        self._pieces.append(piece)

    @property
    def tail(self) -> str:
        """What the current line ends with."""
        return "".join(self._pieces[-3:])[-8:]

    def add_row(self, line: str) -> None:
        """Append a line as it is."""
        self.end_line()
        if line.strip():
            self.lines.append(_INDENT * self.indent + line)

    def end_line(self) -> None:
        """Close the current line, if there is anything on it."""
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        for piece in text.split("\0"):  # a NUL stands for <br>
            if piece.isascii():
                line = " ".join(piece.split())
            else:
                line = _SPACE.sub(" ", _INVISIBLE.sub("", piece)).strip(" ").replace("\xa0", " ").rstrip()
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
        if not self._structures and not lays_out(node):
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
        content = node.text_content or ""
        text.add(content if "&" not in content or _in_code(node) else _ENTITY.sub(lambda m: unescape(m[0]), content))
        return False
    if tag in SKIPPED:
        if tag == "script":
            _add_math_script(node, text)
        elif tag == "noscript":
            _add_formula_of_noscript(node, text)
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
    if tag in CODE_TAGS and (code := verbatim(node, tag)) is not None:
        if code:
            text.add_code(code)
        return False
    if tag in _INLINE_WRITERS:
        return _INLINE_WRITERS[tag](node, text)
    if tag in BLOCKS:
        return _enter_block(node, tag, text)
    attributes = node.attributes
    name = attributes.get("class")
    if name and ("math" in name.lower() or "katex" in name or "mjx" in name):
        return _enter_math_span(node, name, text)
    return tag != "mjx-container" or _enter_math_span(node, "mjx-container", text)


def _enter_block(node: LexborNode, tag: str, text: Text) -> bool:
    if tag == "tr":
        cells = text.rows.get(node.mem_id) or [
            one for cell in own_cells(node) for one in (cell, *[None] * (span(cell, "colspan") - 1))
        ]
        if (line := data_row(node, cells, _cell_text)) is not None:
            text.add_row(line)
            return False
    if tag == "table" and node.css_first("[rowspan]") is not None:
        text.rows |= rows_of(node)
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


def _is_links(node: LexborNode) -> bool:
    characters = len("".join((node.text() or "").split()))
    linked = sum(len("".join((link.text() or "").split())) for link in node.css("a[href]"))
    return linked > _LINK_SHARE * characters


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
    if "MathJax" in name and _has_source_after(node):
        return False
    source = node.css_first("math")
    if source is not None and "katex-html" not in name:
        _add_math(source, text)
    elif data := node.attributes.get("data-mathml"):
        from selectolax.lexbor import LexborHTMLParser

        inner = LexborHTMLParser(data).css_first("math")
        if inner is not None:
            _add_math(inner, text)
    return False


def _has_source_after(node: LexborNode) -> bool:
    """Whether the script that a drawing of MathJax 2 was made from stands behind it."""
    after = node.next
    for _ in range(4):
        if after is None:
            return False
        if after.tag == "script":
            return (after.attributes.get("type") or "").startswith("math/")
        after = after.next
    return False


def _add_formula_of_noscript(node: LexborNode, text: Text) -> None:
    """The formulas of pictures that only stand in `noscript`, since a script loads the others late."""
    for image in node.css("img"):
        before = node.prev
        while before is not None and before.tag == "-text" and not (before.text_content or "").strip():
            before = before.prev
        shown = before.attributes if before is not None and before.tag == "img" else {}
        if not (shown.get("alt") or "").strip() and _tex_of_image(image.attributes):
            _add_image(image, text)


def _tex_of_image(attributes: dict[str, str | None]) -> str:
    alt = (attributes.get("alt") or "").strip()
    source = attributes.get("src") or ""
    if source.startswith("data:") or not source:
        source = attributes.get("data-src") or attributes.get("data-lazy-src") or ""
    if tex := tex_of_address(source):
        return tex
    if not alt or not is_tex(alt, attributes.get("class") or "", source):
        return ""
    return re.sub(r"^(\\\(|\\\[|\$+)\s*|\s*(\\\)|\\\]|\$+)$", "", alt)


def _add_image(node: LexborNode, text: Text) -> None:
    attributes = node.attributes
    if tex := _tex_of_image(attributes):
        text.add(f"${tex}$")
        return
    alt = (attributes.get("alt") or "").strip()
    if alt and not _FILE_NAME.fullmatch(alt) and (_stands_in_text(node) or _describes(node, alt)):
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


# ---- small things in a line ------------------------------------------------------------------------------------------


def _in_code(node: LexborNode) -> bool:
    above = node.parent
    for _ in range(4):
        if above is None:
            return False
        if above.tag in ("code", "kbd", "samp", "tt"):
            return True
        above = above.parent
    return False


def _add_script(node: LexborNode, text: Text) -> bool:
    """`10<sup>6</sup>` is 10^6 and no 106; marks of notes and ordinals stay as they are."""
    content = (node.text() or "").strip()
    tail = text.tail
    if not content or not tail or not _EXPONENT.fullmatch(content):
        return True
    number = content.isdecimal()
    if node.css_first("a") is not None or (node.parent is not None and node.parent.tag == "a"):
        if number and tail[-1:].isdecimal():  # the number of a note would be read as digits of the number before it
            text.add(f"[{content}]")
            return False
        return True
    if node.tag == "sub":
        if not (number and tail[-1:].isdecimal()):
            return True
        text.add(f"_{content}")
    elif not _POWER.search(tail):
        return True
    else:
        plain = len(content) == 1 or content.lstrip("-+\u2212").isdecimal()
        text.add(f"^{content}" if plain else f"^{{{content}}}")
    return False


def _add_reading(node: LexborNode, text: Text) -> bool:
    """The reading over a word of Chinese or Japanese, in parentheses where the page has none of its own."""
    above = node.parent
    if above is not None and above.css_first("rp") is not None:
        return True
    if reading := (node.text() or "").strip():
        text.add(f"({reading})")
    return False


_INLINE_WRITERS = {"sup": _add_script, "sub": _add_script, "rt": _add_reading}


def _cell_text(cell: LexborNode) -> str:
    return " ".join(str(render(cell)).split())
