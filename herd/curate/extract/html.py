"""Web page to text: the main content with its code, formulas and tables, without the furniture around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from selectolax.lexbor import LexborHTMLParser

from herd.curate.extract.content import main_content, measure
from herd.curate.extract.embedded import embedded_page
from herd.curate.extract.feeds import feed_page
from herd.curate.extract.latex import latex_text
from herd.curate.extract.markdown import markdown_text
from herd.curate.extract.pdf import pdf_text
from herd.curate.extract.posts import ExplainedBlock, Table, explain, load_table, posts_of
from herd.curate.extract.render import Text, render
from herd.curate.extract.threads import post_furniture
from herd.curate.filters.structure import without
from herd.curate.filters.text import keep_lines
from herd.curate.read.encoding import decode
from herd.errors import DataError

MAX_HTML_CHARACTERS = 10_000_000
MAX_TAGS = 300_000
MAX_ATTRIBUTES = 1000
MAX_COMPARISONS = 200_000_000
"""Of a page's attributes: the parser compares each of a tag with all others, some 250 million a second."""
_FEW_ATTRIBUTES = 20  # of a tag; what those with fewer cost all together is little
_ATTRIBUTE = r"""(?:[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"?|'[^']*+'?|[^\s>]*+))?+)"""
_FEW = rf"{_ATTRIBUTE}{{0,{_FEW_ATTRIBUTES}}}+[\s/]*+(?:>|\Z)"
_LONG_TAG = re.compile(  # the next tag of many attributes, with what stands before it
    r"(?:[^<]++|<!--[^-]*+(?:-(?!->)[^-]*+)*+|"
    + "|".join(rf"<{name}(?=[\s/>]){_FEW}[^<]*+(?:<(?!/{name})[^<]*+)*+" for name in ("script", "style"))
    + rf"|<(?!(?:script|style)[\s/>])[a-z][^\s/>]*+{_FEW}|<(?![a-z!])|<!(?!--))*+(<[a-z][^\s/>]*+{_ATTRIBUTE}*+)",
    re.I,
)
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
_FEW_CHARACTERS = 250  # a page that shows less is looked through for text that it only holds
_MANY_TAGS = 20_000
_MAX_DEPTH = 400
_LONG_TITLE_WORDS = 4
_TITLE_BREAK = re.compile(r"\s+(?:[|»·•–—-]|::)\s+")


class Extracted(NamedTuple):
    """What a page says. `problem` names why nothing was extracted, None when all is well."""

    text: str
    title: str
    code_lines: list[int]  # start, end (exclusive), start, end...: lines of the text that are code blocks
    problem: tuple[str, str] | None  # reason and detail
    aside_lines: Sequence[int] = ()  # the same of tables and lists
    link_lines: Sequence[int] = ()  # and of lists and tables of links


def html_to_text(html: str | bytes, url: str | None = None) -> str:
    """The main content of a page as plain text: paragraphs, code exactly as written, formulas as TeX, no markdown.

    Bytes are decoded by their declared or detected encoding. A page over the size limit gives an empty text.

    Raises:
        DataError: the page is neither text nor bytes.
    """
    if isinstance(html, bytearray | memoryview):
        html = bytes(html)
    if not isinstance(html, str | bytes):
        raise DataError(f"html_to_text: expected a page as str or bytes, got {type(html).__name__}")
    return extract(html, url).text


def extract(
    content: str | bytes, url: str | None = None, charset: str = "", kind: str = "html", threads: Table | bool = True
) -> Extracted:
    """Text and title of a page; never raises for any content.

    `kind` is one of `herd.curate.read.kinds.kind_of`; `text` and `code` are taken as they are. `threads` says
    whether the posts of threads are looked for, or is the table to do it with instead of the one that ships.
    """
    if kind == "pdf":
        text, problem = pdf_text(content) if isinstance(content, bytes) else ("", ("pdf", "no bytes"))
        return Extracted(text, "", [], problem)
    source = decode(content, charset)[0] if isinstance(content, bytes) else content
    if _is_binary(source):
        return Extracted("", "", [], ("binary", "not a text"))
    if kind in _WRITTEN:
        return Extracted(*_WRITTEN[kind](source), None)
    if kind not in ("html", "feed"):
        return Extracted(source.replace("\r\n", "\n"), "", [], None)
    if problem := _too_much(source):
        return Extracted("", "", [], problem)
    if kind == "feed":
        source = feed_page(source)
        if problem := _too_much(source):  # what was escaped is markup now
            return Extracted("", "", [], problem)
    tree = LexborHTMLParser(_flattened(source.replace("\0", "")))
    if tree.body is None:
        return Extracted("", _title(tree), [], None)
    if kind == "feed":
        shown = render(tree.body)
    else:
        shown = _own_text(tree, source, load_table() if threads is True else threads or None)
    found: dict[str, Any] = {"text": str(shown), "code_lines": shown.code_lines}
    found |= {"aside_lines": shown.aside_lines, "link_lines": shown.link_lines}
    if kind != "feed":
        _take_out_post_furniture(found)
    return Extracted(found["text"], _title(tree), found["code_lines"], None, found["aside_lines"], found["link_lines"])


def _own_text(tree: LexborHTMLParser, source: str, table: Table | None) -> Text:
    """What a web page says: the posts of a thread, the main content of other pages."""
    elements = measure(tree)
    if table is not None and table.is_thread((element.hint for element in elements if element.hint), source):
        posts = posts_of(elements[0].node, table)
        if posts is not None:
            return render(posts.root, posts.dropped)
    shown = render(main_content(elements))
    return _held(source, len(str(shown))) or shown


def explain_thread(content: str | bytes, charset: str = "") -> list[ExplainedBlock]:
    """The blocks of a page that is read as a thread, with their scores and why; none of any other page."""
    source = decode(content, charset)[0] if isinstance(content, bytes) else content
    if _is_binary(source) or _too_much(source):
        return []
    elements = measure(LexborHTMLParser(_flattened(source.replace("\0", ""))))
    table = load_table()
    names = (element.hint for element in elements if element.hint)
    return explain(elements[0].node, table) if table.is_thread(names, source) else []


def _take_out_post_furniture(found: dict[str, Any]) -> None:
    lines = found["text"].split("\n")
    gone = post_furniture(without(lines, found["code_lines"]))
    if any(gone):
        keep_lines(found, [not one for one in gone])


def _held(source: str, size: int) -> Text | None:
    """What a page that shows next to nothing holds for scripts, or for readers without them."""
    if size >= _FEW_CHARACTERS:
        return None
    page = embedded_page(
        LexborHTMLParser(_flattened(source.replace("\0", ""))), size
    )  # furniture has left the other tree
    body = LexborHTMLParser(_flattened(page)).body if page and not _too_much(page) else None
    return None if body is None else render(body)


_WRITTEN = {"markdown": markdown_text, "latex": latex_text}


def _too_much(source: str) -> tuple[str, str] | None:
    """Why a page is not parsed: its size, its tags, the attributes of one of them."""
    if len(source) > MAX_HTML_CHARACTERS:
        return "page_size", f"{len(source):,} characters of HTML"
    if (tags := source.count("<")) > MAX_TAGS:
        return "page_tags", f"{tags:,} tags"
    problem = _many_attributes(source)
    return ("page_tags", problem) if problem else None


def _many_attributes(source: str) -> str | None:
    """Whether the parser would compare attributes for long, and why."""
    comparisons = 0
    place = 0
    while tag := _LONG_TAG.match(source, place):
        place = tag.end()
        count = sum(1 for _ in _ONE_ATTRIBUTE.finditer(tag[1])) - 1  # the first is the name
        if count >= MAX_ATTRIBUTES:
            return f"a tag of {MAX_ATTRIBUTES:,} attributes"
        comparisons += count**2
        if comparisons > MAX_COMPARISONS:
            return "tags of hundreds of attributes, by the thousand"
    return None


_STRAY_CONTROLS = 8  # what a short page may hold of NULs and the like and still be text
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")


def _is_binary(source: str) -> bool:
    head = source[:4000]
    return len(_CONTROL.findall(head)) > max(_STRAY_CONTROLS, 0.05 * len(head))


_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^<>]*>")
_VOID = {
    "br",
    "img",
    "hr",
    "input",
    "meta",
    "link",
    "area",
    "base",
    "col",
    "embed",
    "source",
    "track",
    "wbr",
    "p",
    "li",
}


def _flattened(source: str) -> str:
    """Take out tags nested deeper than any honest page: a parser's time grows with the square of the depth."""
    if source.count("<") < _MANY_TAGS:
        return source
    depth = 0

    def keep(match: re.Match) -> str:
        nonlocal depth
        closing, name = match[1], match[2].lower()
        if name in _VOID:
            return match[0]
        depth = max(0, depth - 1) if closing else depth + 1
        return match[0] if depth <= _MAX_DEPTH - bool(closing) else ""

    return _TAG.sub(keep, source)


def _title(tree: LexborHTMLParser) -> str:
    """The page's title without the name of the site: of `Bees | The Garden` the part `Bees`."""
    node = tree.css_first("title")
    title = " ".join((node.text() or "").split()) if node is not None else ""
    parts = [part for part in _TITLE_BREAK.split(title) if part]
    return max(parts, key=lambda part: min(len(part.split()), _LONG_TITLE_WORDS)) if parts else title
