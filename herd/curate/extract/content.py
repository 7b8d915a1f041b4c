"""Which part of a page is its own content.

Furniture is left out, then the smallest element that holds the rest is found: the *home* of the content. The measure is
*good text*: blocks long enough to say something and not made of links. Everything is counted in one walk over the tree.
Hints that authors leave (roles, class names) are believed only as far as the text bears them out: an element that holds
most of the page's good text is never furniture, whatever it is called.

The constants were chosen on three fifths of two public sets of annotated pages and checked on the rest (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from herd.curate.extract import furniture
from herd.curate.extract.render import BLOCKS

_GOOD_CHARACTERS = 60  # a block this long with a sentence mark in it is good text
_LONG_CHARACTERS = 140  # a block this long is good text whatever its marks
_MAX_LINK_SHARE = 0.45  # of a block's characters; above, it is a menu
_DOMINANT = 0.6  # share of the good text that makes one child the home of the content
_TITLED_ARTICLE = 0.2  # share of the good text that makes an article with a first-level heading the whole content
_TWINS = 0.1  # share of good text in its twins that makes an element one section of several
_PROTECTED = 0.65  # share of the good text above which no hint can remove an element
_PROTECTED_TITLE = 0.2  # the same for an element that holds a first-level heading
_PROTECTED_WEAK = 0.12  # the same for hints that are often given to content as well
_LEAD_CHARACTERS = 150  # a paragraph this long before the home belongs to it
_LEAD_LEVELS = 4  # how far up the tree it is looked for
_MIN_CHARACTERS = 250  # with less than this, the search begins again with fewer rules
_LINK_BLOCK = 0.8  # share of links that makes a paragraph a link
_LINK_LIST = 0.9  # share of links that makes a list a menu
_LINK_TABLE = 0.75  # share of links that makes a table a menu
_EDGE_CHARACTERS = 60  # shorter blocks before the first and after the last good text are furniture
_CODE_FRAME = 0.8  # share of preformatted text that makes an element the frame of a code block

_CODE = "code, tt, kbd, samp, .code"  # bylines and dates have none

_SENTENCE = re.compile(r"[.!?…。！？।:;,،؟]")
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_QUESTION_WORDS, _LEAST_SECTIONS = 3, 3
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_LISTS = {"ul", "ol", "table", "dl"}
_PARTS = {"li", "td", "th", "tr", "dt", "dd", "tbody", "thead", "tfoot", "pre", "caption"}  # judged with the whole
_NAMED_AFTER_CONTENT = {"code", "pre", "math", "kbd", "samp", "dt", "table", "thead", "tbody", "tr", "td", "th"}
_NAMED_AFTER_CONTENT |= _HEADINGS
_NAMED_AFTER_CONTENT |= {"body", "html", "article", "main"}
_NEVER_HOME = {"p", "ul", "ol", "tbody", "tr", "blockquote", "pre", "dl", "li", "dd", "dt", *_HEADINGS}
_INLINE_HOME = {"span", "font", "a", "b", "i", "em", "strong"}  # what broken pages wrap everything in


class _Element:
    """What the walk knows of one element."""

    __slots__ = (
        *("attributes", "block", "code", "end", "gone", "good", "has_title", "hint", "in_link", "link", "marks"),
        *("node", "own", "own_link", "parent", "tag", "text"),
    )
    gone: bool
    text: int
    link: int
    good: int
    code: int

    def __init__(
        self,
        node: LexborNode,
        tag: str,
        parent: int,
        attributes: dict[str, str | None],
        hint: str,
        block: int,
        in_link: bool,
    ):
        self.node, self.tag, self.parent, self.attributes = node, tag, parent, attributes
        self.hint = hint  # class and id
        self.block = block  # the block that its text belongs to
        self.in_link = in_link
        self.own = 0  # characters of text whose block this is
        self.own_link = 0  # of these, inside links
        self.marks = False  # whether a sentence mark is in it
        self.has_title = False  # whether a first-level heading is inside
        self.end = 0  # the number of the first element after the subtree
        # Of each search: `gone`, and of what is left of the subtree the characters of `text`, `link`, `good` text
        # and preformatted `code`. They are set there, since there are thousands of elements.

    @property
    def is_good(self) -> bool:
        """Whether its own text says something."""
        if self.own_link > _MAX_LINK_SHARE * self.own:
            return False
        if self.tag == "pre":
            return self.own > 0
        return self.own >= _LONG_CHARACTERS or (self.own >= _GOOD_CHARACTERS and self.marks)


def measure(tree: LexborHTMLParser) -> list[_Element]:
    """The elements of a page, counted; what is no text on any page is taken out of the tree."""
    prepare(tree)
    assert tree.body is not None  # the parser makes one where the page has none
    return _measure(tree.body)


def prepare(tree: LexborHTMLParser) -> None:
    """Take out of a tree what is no text on any page: scripts, menus, buttons but the questions of an accordion."""
    for button in tree.css("h2 button, h3 button, h4 button, h5 button, dt button, button[aria-expanded]"):
        if len((button.text() or "").split()) >= _QUESTION_WORDS:
            button.unwrap()  # the question of an accordion
    for node in tree.css(furniture.CUT):
        node.decompose()


def main_content(elements: list[_Element]) -> LexborNode:
    """The element that holds the page's own content, with furniture taken out of it."""
    _forget_ids_of_headings(elements)
    whole = sum(element.own for element in elements)
    for strictness in (2, 1, 0):
        home = _search(elements, strictness)
        while home and _take_out_consent(elements, home):
            home = _search(elements, strictness)
        if elements[home].text >= min(_MIN_CHARACTERS, 0.5 * whole):
            break
    for element in _alive(elements, home + 1, elements[home].end, take_gone=True):
        if element.gone:
            element.node.decompose()
    return elements[home].node


def _search(elements: list[_Element], strictness: int) -> int:
    """Mark what is furniture under rules of one strictness (2 all, 1 without weak hints, 0 few) and find the home."""
    for element in elements:
        element.gone = False
    _sum(elements)
    _mark_furniture(elements, strictness)
    _sum(elements)
    home = _with_lead(elements, _home(elements))
    if strictness:
        _mark_links_and_phrases(elements, home)
        _mark_empty_headings(elements, home)
        _sum(elements, home)
    return home


def _take_out_consent(elements: list[_Element], home: int) -> bool:
    """Take the home out of the page where it only asks for consent, over an article that is shorter."""
    frame, number = elements[home].hint, home
    while (number := elements[number].parent) > 0:
        frame += f" {elements[number].hint}"
    if elements[home].text == elements[0].text or not furniture.frames_consent(frame):
        return False
    if not furniture.asks_consent(elements[home].node.text() or ""):
        return False
    elements[home].node.decompose()
    for element in elements[home : elements[home].end]:
        element.own = element.own_link = 0
        element.tag, element.has_title, element.marks = "aside", False, False
    return True


def _forget_ids_of_headings(elements: list[_Element]) -> None:
    """The ids of a documentation's sections are made of their headings and tell nothing: `<section id=comments>`."""
    found = []
    for number, element in enumerate(elements):
        if element.tag in _HEADINGS and element.parent > 0:
            section = elements[element.parent]
            named = (section.attributes.get("id") or "").lower()
            if named and named == furniture.slug(element.node.text() or ""):
                found.append((number, section))
    if len(found) >= _LEAST_SECTIONS:
        for number, section in found:
            section.hint, elements[number].has_title = section.attributes.get("class") or "", True


# ---- the measure -----------------------------------------------------------------------------------------------------


def _measure(root: LexborNode) -> list[_Element]:
    """Walk the tree once; elements come in document order, children after their parents."""
    elements = [_Element(root, "body", -1, {}, "", 0, False)]
    open_nodes: list[LexborNode] = []  # from below the root to the parent of `node`
    node, parent = root.child, 0
    while True:
        while node is not None:
            tag = node.tag
            if tag == "-text":
                if text := (node.text_content or "").strip():
                    _count_text(elements, elements[parent], text)
            elif tag and tag[0] != "-":
                number = len(elements)
                elements.append(_new_element(node, tag, number, parent, elements[parent]))
                if tag == "pre":  # never judged by what it says
                    _count_text(elements, elements[number], (node.text() or "").strip())
                elif (child := node.child) is not None:
                    open_nodes.append(node)
                    node, parent = child, number
                    continue
                _close(elements, number)
            node = node.next
        if not open_nodes:
            break
        node = open_nodes.pop().next
        parent = _close(elements, parent)
    elements[0].end = len(elements)
    return elements


def _new_element(node: LexborNode, tag: str, number: int, parent: int, above: _Element) -> _Element:
    attributes = node.attributes
    hint = f"{attributes.get('class') or ''} {attributes.get('id') or ''}" if attributes else ""
    in_link = above.in_link or (tag == "a" and not (attributes.get("href") or "#").startswith("#"))
    return _Element(node, tag, parent, attributes, hint, number if tag in BLOCKS else above.block, in_link)


def _close(elements: list[_Element], number: int) -> int:
    """Note where an element ends, once everything in it was seen; returns its parent."""
    element = elements[number]
    element.end = len(elements)
    if element.has_title or element.tag == "h1":
        elements[element.parent].has_title = True
    return element.parent


def _count_text(elements: list[_Element], above: _Element, text: str) -> None:
    block = elements[above.block]
    size = len(text)
    block.own += size
    block.marks = block.marks or _SENTENCE.search(text) is not None
    if above.in_link:
        block.own_link += size


def _sum(elements: list[_Element], root: int = 0) -> None:
    """Add up text, links and good text of what is not gone below `root`, from the leaves up."""
    inside = elements[root : elements[root].end] if root else elements
    for element in inside:
        element.text, element.link = element.own, element.own_link
        element.good = element.own if element.own and element.is_good else 0
        element.code = element.own if element.tag == "pre" else 0
    for number in range(elements[root].end - 1, root, -1):
        element = elements[number]
        if element.text and not element.gone:
            above = elements[element.parent]
            above.text += element.text
            above.link += element.link
            above.good += element.good
            above.code += element.code


def _children(elements: list[_Element], number: int) -> Iterator[int]:
    """The numbers of an element's children that are not gone."""
    child = number + 1
    while child < elements[number].end:
        if not elements[child].gone:
            yield child
        child = elements[child].end


def _alive(elements: list[_Element], start: int, end: int, take_gone: bool = False) -> Iterator[_Element]:
    """The elements of a range in document order, without what lies inside one that is gone when its turn comes."""
    number = start
    while number < end:
        element = elements[number]
        if take_gone or not element.gone:
            yield element
        number = element.end if element.gone else number + 1


# ---- furniture by name -----------------------------------------------------------------------------------------------


def _mark_furniture(elements: list[_Element], strictness: int) -> None:
    """Mark what is named furniture and does not carry the page."""
    total = elements[0].good
    for element in _alive(elements, 1, len(elements)):
        element.gone = _is_furniture(element, total, strictness)


def _is_furniture(element: _Element, total: int, strictness: int) -> bool:
    if total and element.good > _PROTECTED * total:
        return False
    if element.tag in ("footer", "aside", "nav") or (element.attributes and _is_hidden(element)):
        return True
    if not strictness:
        return False
    has_little = element.good <= _PROTECTED_WEAK * total
    if element.tag == "form":
        return has_little
    if not element.hint or element.tag in _NAMED_AFTER_CONTENT or _is_math(element):
        return False
    if element.has_title and total and element.good > _PROTECTED_TITLE * total:
        return False
    sure = furniture.strength(element.hint)
    return sure == 2 or (sure == 1 and strictness == 2 and element.tag in BLOCKS and has_little)


def _is_hidden(element: _Element) -> bool:
    attributes = element.attributes
    role = attributes.get("role")
    if role and role in furniture.ROLES:
        return True
    if role == "tabpanel" or (element.hint and furniture.is_opened(element.hint)):
        return False
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return not _is_math(element)
    style = attributes.get("style")
    return bool(style and _HIDDEN.search(style)) and element.node.css_first("math") is None


def _is_math(element: _Element) -> bool:
    hint = element.hint.lower()
    return element.tag == "math" or element.tag.startswith("mjx") or "math" in hint or "katex" in hint


# ---- the home of the content -----------------------------------------------------------------------------------------


def _home(elements: list[_Element]) -> int:
    """Go down from the body as long as one child holds most of the good text of the page."""
    home = _start(elements)
    total = elements[home].good
    while total:
        alive = list(_children(elements, home))
        best = max(alive, key=lambda child: elements[child].good, default=None)
        if best is None or elements[best].good < _DOMINANT * total or not _can_be_home(elements[best]):
            break
        if _good_of_twins(elements, alive, best) > _TWINS * total:
            break
        home = best
    return home


def _start(elements: list[_Element]) -> int:
    """The one `article` that holds the page's title and a fair share of its text, else the body."""
    least = _TITLED_ARTICLE * elements[0].good
    titled = [e for e in _alive(elements, 1, len(elements)) if e.tag == "article" and e.has_title and e.good > least]
    if not titled or any(article.end > titled[0].end for article in titled):
        return 0
    return next(number for number, element in enumerate(elements) if element is titled[0])


def _can_be_home(element: _Element) -> bool:
    tag = element.tag
    if tag in _NEVER_HOME or not (tag in BLOCKS or tag in _INLINE_HOME or "-" in tag):
        return False
    if tag == "table" and (element.node.css_first("th") is not None or "section" in element.hint.split()):
        return False  # data, or one of the sections of a page of pydoc, not layout
    return element.code <= _CODE_FRAME * element.text


def _good_of_twins(elements: list[_Element], siblings: list[int], number: int) -> int:
    """Good text in the siblings that look just like an element: sections of one document, not content and furniture."""
    one = elements[number]
    name = one.attributes.get("class")
    if one.tag == "article" or not (name or one.tag == "section"):
        return 0
    twins = (elements[i] for i in siblings if i != number and elements[i].tag == one.tag)
    return sum(twin.good for twin in twins if twin.attributes.get("class") == name)


def _with_lead(elements: list[_Element], home: int) -> int:
    """Take in a lead paragraph that stands before the home, and nothing else of what is there."""
    top = ancestor = home
    leads: list[int] = []
    for _ in range(_LEAD_LEVELS):
        ancestor = elements[ancestor].parent
        if ancestor < 0:
            break
        found = [i for i in range(ancestor + 1, home) if elements[i].own >= _LEAD_CHARACTERS and _is_lead(elements, i)]
        if len(found) > len(leads):
            top, leads = ancestor, found
    if top == home:
        return home
    kept = [(i, elements[i].end) for i in [*leads, home]]
    for i in range(top + 1, elements[top].end):
        holds_kept = any(start <= i < end or i < start < elements[i].end for start, end in kept)
        elements[i].gone |= not holds_kept
    return top


def _is_lead(elements: list[_Element], number: int) -> bool:
    if not elements[number].is_good or elements[number].tag in ("li", "td", "figcaption"):
        return False
    while number >= 0:
        if elements[number].gone:
            return False
        number = elements[number].parent
    return True


# ---- links and phrases inside it -------------------------------------------------------------------------------------


def _mark_links_and_phrases(elements: list[_Element], home: int) -> None:
    """Mark menus, lists of headlines, captions, and short blocks that only ask the reader to do something."""
    total = elements[home].good
    good = [e for e in _alive(elements, home, elements[home].end) if e.own and e.is_good]
    first, last = (good[0].end, good[-1].end) if len(good) >= 3 else (0, len(elements))
    for element in _alive(elements, home + 1, elements[home].end):
        if element.tag in BLOCKS:
            element.gone = _says_nothing(element, not first <= element.end <= last, total)


def _says_nothing(element: _Element, at_edge: bool, total: int) -> bool:
    if element.tag == "figcaption":
        return element.node.css_first("pre, math, table") is None
    if element.text == 0 or element.good > _PROTECTED_WEAK * total or (element.has_title and element.tag in _HEADINGS):
        return False
    if element.tag == "table":
        return element.link > _LINK_TABLE * element.text and not _says_more_than_links(element.node)
    if element.tag in _LISTS:
        return element.link > _LINK_LIST * element.text
    child = element.node.child
    if element.tag in _PARTS or (element.tag == "div" and child is not None and child.tag == "code"):
        return False
    if element.text != element.own:
        return element.link >= _LINK_BLOCK * element.text
    if element.tag not in _HEADINGS:
        if element.link >= _LINK_BLOCK * element.text:
            return True
        if at_edge and element.own < _EDGE_CHARACTERS and not element.marks:
            return element.tag != "p" or element.node.css_first(_CODE) is None  # "Implementation of JSONEncoder"
    said = " ".join((element.node.text() or "").split())
    return element.own <= furniture.MAX_PHRASE_CHARACTERS and furniture.is_phrase(said)


def _says_more_than_links(table: LexborNode) -> bool:
    """Most rows have a last cell with text of its own: only the first column is links."""
    rows = [row.css("td") for row in table.css("tr")]
    told = [cells[-1].css_first("a") is None and bool((cells[-1].text() or "").strip()) for cells in rows if cells]
    return len(told) > 1 and sum(told) > 0.5 * len(told)


def _mark_empty_headings(elements: list[_Element], home: int) -> None:
    """Mark headings under which nothing is left: what they announced was furniture."""
    has_text = [False] * 7  # by level of heading: whether text follows before the next heading of that level
    blocks = [e for e in _alive(elements, home + 1, elements[home].end) if e.own]
    for element in reversed(blocks):
        if element.tag not in _HEADINGS:
            has_text = [True] * 7
            continue
        level = int(element.tag[1])
        element.gone = not has_text[level]
        if not element.gone:
            has_text = [True] * level + [False] * (7 - level)
