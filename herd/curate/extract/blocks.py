"""A page as a list of blocks: runs of text between the borders of block elements, and the elements that hold them.

One walk over the tree, a loop and no recursion, so that no depth of nesting can break it. A data table and a block of
code are one block each: they are kept or left out as a whole, and never judged by what stands in them.
"""

from __future__ import annotations

import re

from selectolax.lexbor import LexborNode

from herd.curate.extract.code import verbatim
from herd.curate.extract.render import BLOCKS, CODE_TAGS, SKIPPED
from herd.curate.extract.tables import is_data

HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_UNSEEN = re.compile(r"(?<![a-z])(?:headerlink|editsection|mw-editsection|sr-only|visually-?hidden|screen-reader-text)")
_SHAPE = re.compile(r"MathJax|mjx|katex-html")
_WORDS = re.compile(r"[a-z]{2,}")
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
FORMULA = "x = y"  # stands for a formula in a block's text
_MAX_NAME_WORDS = 4
_TEXT_WORDS = re.compile(r"[^\W\d_]{2,}|©")
_SHORT_TEXT = 100  # characters
_MAX_HINT = 200  # characters of a class name that are read
_NAMING = ("class", "id", "role", "itemprop")
_LEAVES = {"img", "math"}
_INLINE_ROOTS = {"span", "a"}  # their attributes are looked at


class Blocks:
    """A page's blocks and elements, in document order, as lists that run beside each other.

    Of blocks: `texts` (as they stand), `links` (characters inside links), `nodes` (what shows them), `holders` (the
    element each lies in), `kinds` (its tag; `pre` and `table` where it is code or data). Of elements: `tags`,
    `parents`, `firsts` and `ends` (the blocks inside: first, and after the last), `names` (class, id, role), `hidden`.
    """

    __slots__ = (
        *("ends", "firsts", "hidden", "holders", "kinds", "links", "names", "nodes", "parents", "roots", "tags"),
        "texts",
    )

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.links: list[int] = []
        self.nodes: list[list[LexborNode]] = []
        self.holders: list[int] = []
        self.kinds: list[str] = []
        self.tags: list[str] = []
        self.parents: list[int] = []
        self.firsts: list[int] = []
        self.ends: list[int] = []
        self.names: list[str] = []
        self.hidden: list[bool] = []
        self.roots: list[LexborNode] = []  # the elements themselves

    def _open(self, node: LexborNode, tag: str, parent: int) -> int:
        attributes = node.attributes
        name, hidden = "", False
        if attributes:
            name = " ".join([value for key in _NAMING if (value := attributes.get(key))])
            if "hidden" in attributes or attributes.get("aria-hidden") == "true":
                hidden = True
            elif style := attributes.get("style"):
                hidden = bool(HIDDEN.search(style))
        self.tags.append(tag)
        self.parents.append(parent)
        self.firsts.append(len(self.texts))
        self.ends.append(0)
        self.names.append(name[:_MAX_HINT])
        self.hidden.append(hidden)
        self.roots.append(node)
        return len(self.tags) - 1

    def _close(self, number: int) -> None:
        """An element ends; one without blocks is forgotten."""
        if self.firsts[number] < len(self.texts):
            self.ends[number] = len(self.texts)
            return
        for one in (self.tags, self.parents, self.firsts, self.ends, self.names, self.hidden, self.roots):
            one.pop()

    def _add(self, node: LexborNode, text: str, holder: int, kind: str, in_link: bool) -> None:
        self.texts.append(text)
        self.links.append(len(text) if in_link else 0)
        self.nodes.append([node])
        self.holders.append(holder)
        self.kinds.append(kind)


def read_blocks(root: LexborNode) -> tuple[Blocks, list[LexborNode]]:
    """The blocks below an element, and the nodes that are never shown: marks of headings, words for listeners."""
    blocks, unseen = Blocks(), []
    holder = blocks._open(root, root.tag or "body", -1)
    stack: list[tuple[LexborNode, int, bool]] = []  # what is to be gone on with: node, holder, in a link
    node, in_link, running = root.child, False, False  # running: whether a text goes on with the last block
    while True:
        while node is not None:
            tag = node.tag or ""
            if tag == "-text":
                if text := (node.text_content or "").strip():
                    if running:
                        blocks.texts[-1] += f" {text}"
                        blocks.links[-1] += len(text) if in_link else 0
                        blocks.nodes[-1].append(node)
                    else:
                        blocks._add(node, text, holder, blocks.tags[holder], in_link)
                        running = True
            elif tag in _LEAVES:
                running = _add_leaf(blocks, node, tag, holder, running)
            elif tag in SKIPPED or tag[:1] == "-":
                if tag == "script" and (node.attributes.get("type") or "").startswith("math"):
                    running = _add_leaf(blocks, node, "math", holder, running)
            elif tag in BLOCKS or "-" in tag:
                running = False
                number = blocks._open(node, tag, holder)
                if tag in CODE_TAGS and (code := verbatim(node, tag)) is not None:
                    if code:
                        blocks._add(node, code, number, "pre", False)
                    else:
                        unseen.append(node)
                elif tag == "table" and is_data(node):
                    blocks._add(node, " ".join((node.text(separator=" ") or "").split()), number, "table", False)
                    blocks.links[-1] = sum(len((link.text() or "").strip()) for link in node.css("a[href]"))
                elif (child := node.child) is not None:
                    stack.append((node, holder, in_link))
                    node, holder = child, number
                    continue
                blocks._close(number)
            elif (child := node.child) is not None:
                attributes = node.attributes if tag in _INLINE_ROOTS else None
                name = attributes.get("class") if attributes else None
                if name and _UNSEEN.search(name):
                    unseen.append(node)
                elif name and _SHAPE.search(name):  # a drawn formula: its source stands beside or inside it
                    running = _add_leaf(blocks, node, "math", holder, running)
                elif tag == "code" and (code := verbatim(node, tag)) is not None:
                    blocks._add(node, code, holder, "pre", False)
                    running = False
                else:
                    stack.append((node, holder, in_link))
                    in_link = in_link or (tag == "a" and not ((attributes or {}).get("href") or "#").startswith("#"))
                    node = child
                    continue
            node = node.next
        if not stack:
            break
        above, outer, in_link = stack.pop()
        if holder != outer:
            blocks._close(holder)
            running = False
        node, holder = above.next, outer
    blocks.ends[0] = len(blocks.texts)
    return blocks, unseen


def _add_leaf(blocks: Blocks, node: LexborNode, tag: str, holder: int, running: bool) -> bool:
    """A formula is text; a picture goes with the text around it."""
    if running:
        blocks.nodes[-1].append(node)
        if tag == "math":
            blocks.texts[-1] += f" {FORMULA}"
    elif tag == "math":
        blocks._add(node, FORMULA, holder, blocks.tags[holder], False)
        return True
    return running


def words_of_name(name: str) -> tuple[str, ...]:
    """The words that class names are made of: of `article-relatedList` article, related, list.

    Longer names are made from the words of a heading, as `sharing-with-a-single-developer` is, and say nothing.
    """
    parts = [_WORDS.findall(part) for part in _CAMEL_CASE.sub("-", name).lower().split()]
    return tuple(dict.fromkeys(word for words in parts if len(words) <= _MAX_NAME_WORDS for word in words))


def words_of_text(text: str) -> list[str]:
    """The words of a short block, as they stand in a table of learned words; of a longer one none."""
    return [f"~{word}" for word in dict.fromkeys(_TEXT_WORDS.findall(text.lower()))] if len(text) <= _SHORT_TEXT else []
