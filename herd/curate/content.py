"""Which part of a page is its own content: furniture is left out, then the smallest element that holds the rest is found.

The measure is *good text*: blocks long enough to say something and not made of links. Everything is counted in one walk
over the tree. Hints that authors leave (roles, class names) are believed only as far as the text bears them out: an
element that holds most of the page's good text is never furniture, whatever it is called.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from herd.curate.render import BLOCKS

_GOOD_CHARACTERS = 60  # a block this long with a sentence mark in it is good text
_LONG_CHARACTERS = 140  # a block this long is good text whatever its marks
_MAX_LINK_SHARE = 0.45  # of a block's characters; above, it is a menu
_DOMINANT = 0.6  # share of the good text that makes one child the home of the content
_PROTECTED = 0.65  # share of the good text above which no hint can remove an element
_PROTECTED_TITLE = 0.2  # the same for an element that holds a first-level heading
_PROTECTED_WEAK = 0.12  # the same for hints that are often given to content as well
_TWINS = 0.1  # share of good text in its twins that makes an element one section of several
_LEAD_CHARACTERS = 150  # a paragraph this long before the home belongs to it
_LEAD_LEVELS = 4  # how far up the tree it is looked for
_MIN_TEXT = 250  # characters below which the search begins again with fewer rules
_LINK_BLOCK = 0.8  # share of links that makes a paragraph a link
_LINK_LIST = 0.75  # share of links that makes a list a menu
_EDGE_CHARACTERS = 60  # blocks shorter than this before the first and after the last good text are furniture

_CUT = "script:not([type^=math]), style, noscript, template, iframe, button, select, textarea, dialog, object, canvas"
_CUT += ", audio, video, input, svg, link, meta"
_ROLES = re.compile(
    r"^(?:navigation|banner|contentinfo|search|complementary|dialog|alertdialog|menu|menubar|toolbar|tablist)$"
)

_STRONG = set(
    "nav navbar navigation menu submenu breadcrumb breadcrumbs pager pagination paging footer sidebar comment comments commentlist "
    "disqus respond reply replies share sharing sharethis sharedaddy sharebar shares social socials addthis addtoany related "
    "relateds recommend recommended recommendation recommendations recommends similar yarpp trending outbrain taboola zergnet "
    "newsletter newsletters subscribe subscription subscriptions signup paywall login register ad ads adv advert adverts "
    "advertisement advertising adsense dfp adunit sponsor sponsored sponsors cookie cookies consent gdpr popup modal lightbox rollover "
    "tooltip popover noprint editsection navbox catlinks printfooter headerlink jumplink skiplink linkbox morelinks "
    "postnav sitenav topnav subnav mainnav masthead jumbonav toc followus socialmedia".split()
)
"""Words of a class name or id that name furniture."""
_STRONG_PAIRS = re.compile(
    r"(?<![a-z])(?:more-?(?:stories|news|from|on|articles|like|posts)|read-?(?:more|next|also)|also-?like|you-?may|most-?read|"
    r"most-?popular|skip-?(?:link|to|nav)|screen-?reader\w*|sr-only|visually-?hidden|print-only|prev-?next|next-?prev|"
    r"post-?navigation|author-?(?:bio|box|info|card|profile)|about-?(?:the-)?author|tag-?(?:list|cloud)|cat-links|tags-links|"
    r"table-of-contents|site-(?:header|footer)|page-footer|sign-up|log-in|pop-up|side-?bar|right-?rail|left-?rail|like-box|"
    r"widget-area|call-to-action|follow-us|support-us)(?![a-z])"
)
_WEAK = set(
    "teaser teasers promo promos promotion byline author authors dateline timestamp tags tagged categories widget widgets "
    "toolbar toolbox copyright disclaimer credit credits rating ratings votes banner banners rail latest gallery slideshow carousel slider "
    "caption captions figcaption topbar overlay cta donate donation infobox factbox download downloads mailto feedback survey "
    "playlist player embed counter livestream popular meta metadata meta-info follow search".split()
)
"""Words that name furniture where there is little text."""
_WEAK_NAMES = set(
    "tag date hidden hide d-none print email contact form published posted info box aside notice extra".split()
)
_WEAK_PAIRS = re.compile(
    r"(?<![a-z])(?:post|entry|article|story|news|blog)[-_]*(?:meta|info|date|footer|tags|header-meta|details-meta)(?![a-z])"
)
_LEAD = re.compile(
    r"(?<![a-z])(?:intro|lead|lede|chapo|sapo|standfirst|stand-first|teaser-?text|\w*__teaser|summary|sub-?title|sub-?head(?:line)?|dek|deck|"
    r"abstract|excerpt|vorspann|entradilla|bajada)(?![a-z])"
)
_MODIFIER = re.compile(
    r"^(?:has|no|with|without|is|js|not|hide|show|open|close|u)-|^(?:md|sm|lg|xl|xs|hover|focus|group|dark|print|before|after):"
)
_PHRASE = re.compile(
    r"^\W*(?:advert(?:isement|ising)?s?|anzeige|werbung|publicidad|publicité|reklama|реклама|sponsored(?: content)?|caption|close|"
    r"share(?: this.*| on .*| article)?|teilen|partager|compartir|condividi|tweet|pin it|print|e-?mail|copy link|like this.*|"
    r"read (?:more|next|also|the full).*|click here.*|see also:?|related(?: \w+){0,2}:?|more(?: (?:from|on|in|news|stories|about)\b.*)?:?|"
    r"(?:you )?(?:may|might) also (?:like|be interested).*|don'?t miss:?|top (?:video|stor)\w*|recommended.*|trending.*|most (?:read|popular).*|"
    r"schon gelesen.*|lesen sie auch.*|mehr zum thema.*|das könnte sie auch.*|auch interessant.*|weitere (?:artikel|beiträge|themen|nachrichten).*|"
    r"lire aussi.*|à lire aussi.*|sur le même sujet.*|lea también.*|leia (?:também|mais).*|veja também.*|te puede interesar.*|"
    r"czytaj (?:także|też|również).*|zobacz (?:także|też|również).*|leggi anche.*|potrebbe interessarti.*|читайте также.*|lees ook.*|läs också.*|"
    r"ähnliche (?:artikel|beiträge|nachrichten|themen).*|vos réactions.*|<\w+ [^>]*>.*|(?:photo|foto|bild|image|source|quelle|fuente|fonte)s?(?: credit)?\s*[:©/].{0,80}|"
    r"leave a (?:reply|comment).*|post a comment.*|(?:\d+ |no |keine |view )?(?:comments?|kommentare?|comentarios|commentaires)(?: \(?\d+\)?)?:?|"
    r"join the conversation.*|tell us what you think.*|kommentar schreiben.*|schreibe einen kommentar.*|"
    r"tags?:?|filed under.*|posted in.*|categor(?:y|ies):?|schlagwörter:?|schlagworte:?|"
    r"subscribe(?: to| now| here)?\b.{0,60}|sign up.{0,80}|newsletter|follow (?:us|me)\b.*|get the .{0,40}(?:app|newsletter)\b.*|"
    r"zurück zur .{0,30}|zurück|back to (?:top|.{0,20})|nach oben|weiterlesen.*|continue reading.*|loading.*|view all.*|show more.*|"
    r"next|prev(?:ious)?|next prev|skip to.*|jump to.*|menu|home|search|enlarge(?: image)?|image(?: credit)?:?.{0,40}|photo(?: credit)?:.{0,60}|"
    r"this slideshow requires javascript\.?|all rights reserved.*|©.*|copyright\b.{0,80}|\[?(?:edit|bearbeiten)\]?)\W*$",
    re.I,
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORDS = re.compile(r"[a-z]+")
_SENTENCE = re.compile(r"[.!?…。！？।:;,،؟]")
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_LISTS = {"ul", "ol", "table", "dl"}
_PARTS = {"li", "td", "th", "tr", "dt", "dd", "tbody", "thead", "tfoot", "pre", "caption"}  # judged with the whole
_CODE = {"code", "pre", "math", "kbd", "samp", "table", "thead", "tbody", "tr", "td", "th"}
_NEVER_HOME = {"p", "ul", "ol", "tbody", "tr", "blockquote", "pre", "dl", "li", "dd", "dt", *_HEADINGS}
_NAME_WORDS = 4
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)


@dataclass(slots=True)
class _Element:
    """What the walk knows of one element."""

    node: LexborNode
    tag: str
    parent: int
    hint: str  # class and id
    block: int  # the block that its text belongs to
    in_link: bool
    own: int = 0  # characters of text whose block this is
    own_link: int = 0  # of these, inside links
    marks: int = 0  # sentence marks in it
    has_title: bool = False  # whether the page's first-level heading is inside
    text: int = 0  # characters of what is left of the subtree
    link: int = 0
    good: int = 0  # good text in it
    end: int = 0  # the number of the first element after the subtree
    gone: bool = False
    children: list[int] = field(default_factory=list)


def main_content(tree: LexborHTMLParser) -> LexborNode:
    """The element that holds the page's own content, with furniture taken out of it."""
    for node in tree.css(_CUT):
        node.decompose()
    elements = _measure(tree.body)
    _sum(elements)
    whole = elements[0].text
    for strictness in (2, 1, 0):
        for element in elements:
            element.gone = False
        _sum(elements)
        _mark_furniture(elements, strictness)
        _sum(elements)
        home = _home(elements)
        if strictness:
            _mark_links_and_phrases(elements, home)
            _mark_empty_headings(elements, home)
            _sum(elements)
        if elements[home].text >= min(_MIN_TEXT, 0.5 * whole):
            break
    _cut(elements, home)
    return elements[home].node


def _measure(root: LexborNode) -> list[_Element]:
    """Walk the tree once; elements come in document order, children after their parents."""
    elements = [_Element(root, "body", -1, "", 0, False)]
    index = {root.mem_id: 0}
    for node in root.traverse(include_text=True):
        tag = node.tag
        parent_node = node.parent
        parent = index.get(parent_node.mem_id) if parent_node is not None else None
        if parent is None:
            continue
        if tag == "-text":
            text = (node.text_content or "").strip()
            if text:
                above = elements[parent]
                block = elements[above.block]
                block.own += len(text)
                block.marks += len(_SENTENCE.findall(text))
                if above.in_link:
                    block.own_link += len(text)
        elif tag and tag[0] != "-":
            number = len(elements)
            index[node.mem_id] = number
            above = elements[parent]
            attributes = node.attributes
            hint = f"{attributes.get('class') or ''} {attributes.get('id') or ''}" if attributes else ""
            in_link = above.in_link or (tag == "a" and not (attributes.get("href") or "#").startswith("#"))
            block = number if tag in BLOCKS else above.block
            elements.append(_Element(node, tag, parent, hint, block, in_link))
            above.children.append(number)
    for number in range(len(elements) - 1, -1, -1):
        element = elements[number]
        element.end = max(element.end, number + 1)
        if element.parent >= 0:
            above = elements[element.parent]
            above.end = max(above.end, element.end)
            above.has_title |= element.has_title or element.tag == "h1"
    return elements


def _sum(elements: list[_Element]) -> None:
    """Add up text, links and good text of what is not gone, from the leaves to the root."""
    for element in elements:
        element.text, element.link = element.own, element.own_link
        element.good = element.own if _is_good(element) else 0
    for element in reversed(elements):
        if element.parent >= 0 and not element.gone:
            above = elements[element.parent]
            above.text += element.text
            above.link += element.link
            above.good += element.good


def _is_good(element: _Element) -> bool:
    if element.own_link > _MAX_LINK_SHARE * element.own:
        return False
    if element.tag == "pre":
        return element.own > 0
    return element.own >= _LONG_CHARACTERS or (element.own >= _GOOD_CHARACTERS and element.marks > 0)


# ---- furniture by name -----------------------------------------------------------------------------------------------


def _mark_furniture(elements: list[_Element], strictness: int) -> None:
    """Mark what is named furniture and does not carry the page."""
    total = elements[0].good
    number = 1
    while number < len(elements):
        element = elements[number]
        if _is_furniture(element, total, strictness):
            element.gone = True
            number = element.end
        else:
            number += 1


def _is_furniture(element: _Element, total: int, strictness: int) -> bool:
    tag, attributes = element.tag, element.node.attributes
    if total and element.good > _PROTECTED * total:
        return False
    if tag in ("footer", "aside", "nav"):
        return True
    if attributes and _is_hidden(element, attributes):
        return True
    if tag == "form" and strictness:
        return element.good <= _PROTECTED_WEAK * total
    if not element.hint or tag in ("body", "html", "article", "main") or tag in _HEADINGS or not strictness:
        return False
    if tag in _CODE or tag.startswith("mjx") or "ath" in element.hint[:40] and "math" in element.hint.lower():
        return False
    if element.has_title and total and element.good > _PROTECTED_TITLE * total:
        return False
    strength = _strength(element.hint)
    return strength == 2 or (
        strength == 1 and strictness > 1 and tag in BLOCKS and element.good <= _PROTECTED_WEAK * total
    )


@functools.lru_cache(maxsize=1 << 16)
def _strength(hint: str) -> int:
    """How surely a class name or id names furniture: 2, 1 or 0."""
    strength = 0
    hint = _CAMEL.sub("-", hint).lower()
    for name in hint.split():
        words = _WORDS.findall(name)
        if len(words) > _NAME_WORDS or _MODIFIER.match(name):  # long ones are made from the words of a heading
            continue
        if not _STRONG.isdisjoint(words) or _STRONG_PAIRS.search(name):
            return 2
        if name in _WEAK_NAMES or not _WEAK.isdisjoint(words) or _WEAK_PAIRS.search(name):
            strength = 1
    return 0 if strength and _LEAD.search(hint) else strength


def _is_hidden(element: _Element, attributes: dict) -> bool:
    role = attributes.get("role")
    if role and _ROLES.match(role):
        return True
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return "math" not in element.hint and "katex" not in element.hint and element.tag != "math"
    style = attributes.get("style")
    return bool(style and _HIDDEN.search(style))


# ---- the home of the content -----------------------------------------------------------------------------------------


def _home(elements: list[_Element]) -> int:
    """Go down from the body as long as one child holds nearly all the good text of the page."""
    total = elements[0].good
    home = 0
    while total:
        alive = [child for child in elements[home].children if not elements[child].gone]
        best = max(alive, key=lambda child: elements[child].good, default=None)
        if best is None or elements[best].good < _DOMINANT * total or elements[best].tag in _NEVER_HOME:
            break
        if elements[best].tag == "table" and elements[best].node.css_first("th") is not None:  # data, not layout
            break
        if elements[best].tag not in BLOCKS and elements[best].tag not in (
            "span",
            "font",
            "a",
            "b",
            "i",
            "em",
            "strong",
        ):
            if "-" not in elements[best].tag:
                break
        if _good_of_twins(elements, alive, best) > _TWINS * total:
            break
        home = best
    return _with_lead(elements, home)


def _good_of_twins(elements: list[_Element], siblings: list[int], number: int) -> int:
    """Good text in the siblings that look just like an element: sections of one document, not content and furniture."""
    one = elements[number]
    if one.tag == "article":
        return 0
    return sum(elements[i].good for i in siblings if i != number and _is_twin(elements[i], one))


def _is_twin(one: _Element, other: _Element) -> bool:
    name = one.node.attributes.get("class")
    return one.tag == other.tag and name == other.node.attributes.get("class") and bool(name or one.tag == "section")


def _with_lead(elements: list[_Element], home: int) -> int:
    """Take in a lead paragraph that stands before the home, and nothing else of what is there."""
    top, ancestor = home, home
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
    kept = [range(i, elements[i].end) for i in [*leads, home]]
    for i in range(top + 1, elements[top].end):
        if not any(i in span or (i < span.start < elements[i].end) for span in kept):
            elements[i].gone = True
    return top


def _is_lead(elements: list[_Element], number: int) -> bool:
    if not _is_good(elements[number]) or elements[number].tag in ("li", "td", "figcaption"):
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
    number = home + 1
    first, last = _edges(elements, home)
    while number < elements[home].end:
        element = elements[number]
        if element.gone:
            number = element.end
            continue
        if element.tag in BLOCKS and _says_nothing(element, number < first or number > last, total):
            element.gone = True
            number = element.end
        else:
            number += 1


def _mark_empty_headings(elements: list[_Element], home: int) -> None:
    """Mark headings under which nothing is left: what they announced was furniture."""
    alive = []
    number = home + 1
    while number < elements[home].end:
        element = elements[number]
        if not element.gone and element.own and element.block == number:
            alive.append(element)
        number = element.end if element.gone else number + 1
    has_text = [False] * 7  # by level of heading: whether text follows before the next heading of that level
    for element in reversed(alive):
        if element.tag not in _HEADINGS:
            has_text = [True] * 7
            continue
        level = int(element.tag[1])
        element.gone = not has_text[level]
        if not element.gone:
            has_text = [True] * level + [False] * (7 - level)


def _edges(elements: list[_Element], home: int) -> tuple[int, int]:
    """Numbers of the first and the last block of good text."""
    good = [
        i for i in range(home, elements[home].end) if not elements[i].gone and elements[i].own and _is_good(elements[i])
    ]
    if len(good) < 3:
        return home, elements[home].end
    return good[0], good[-1]


def _says_nothing(element: _Element, at_edge: bool, total: int) -> bool:
    if element.tag == "figcaption":
        return element.node.css_first("pre, math, table") is None
    if element.text == 0 or element.good > _PROTECTED_WEAK * total:
        return False
    if element.tag in _LISTS:
        return element.link > _LINK_LIST * element.text
    if element.tag in _PARTS:
        return False
    if element.text == element.own:
        if element.tag not in _HEADINGS and element.link >= _LINK_BLOCK * element.text:
            return True
        if element.own <= 120 and _PHRASE.match(" ".join((element.node.text() or "").split())):
            return True
        return at_edge and element.own < _EDGE_CHARACTERS and element.marks == 0 and element.tag not in _HEADINGS
    return element.link >= _LINK_BLOCK * element.text


def _cut(elements: list[_Element], home: int) -> None:
    number = home + 1
    while number < elements[home].end:
        if elements[number].gone:
            elements[number].node.decompose()
            number = elements[number].end
        else:
            number += 1
